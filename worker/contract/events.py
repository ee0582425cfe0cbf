"""The lines that a worker and its trainer exchange: commands down, events up, one JSON object each.

Every line but `ready` names its run, so that a late line of an earlier run cannot be taken for the
current one. A line is at most MAX_LINE_BYTES long.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from worker.contract.errors import Blame
from worker.contract.spec import Execution, TrainSpec

PROTOCOL_VERSION = 1
MAX_LINE_BYTES = 1 << 20


class Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # an older side ignores what a newer one added


# Commands, worker to trainer.


class Start(Line):
    """Begin a run. All paths are directories or files on this machine, private to the run."""

    type: Literal["start"] = "start"
    run: str
    spec: TrainSpec
    base_directory: str
    training_data: str  # a token file written by worker.data.token_file
    validation_data: str | None
    work_directory: str
    resume_directory: str | None  # an unpacked checkpoint: adapter/ and state/
    initial_adapter_directory: str | None = None  # a PEFT directory to continue from; a checkpoint goes before it
    card: dict[str, str]  # facts for the model card that only the control side knows


class Stop(Line):
    """End a run: with a checkpoint after the step under way, or without one between micro-batches."""

    type: Literal["stop"] = "stop"
    run: str
    checkpoint: bool


Command = Annotated[Start | Stop, Field(discriminator="type")]

# Events, trainer to worker.


class Ready(Line):
    """The trainer has done its imports and takes commands."""

    type: Literal["ready"] = "ready"
    version: int = PROTOCOL_VERSION
    device: str


class Tick(Line):
    """Proof of progress: sent for each micro-batch, load shard and save chunk."""

    type: Literal["tick"] = "tick"
    run: str


class Started(Line):
    """The first step is about to be taken, or the first after a resume."""

    type: Literal["started"] = "started"
    run: str
    execution: Execution
    total_steps: int
    resumed_from_step: int  # 0 for a fresh run
    trainable_parameters: int


class Adjusted(Line):
    """The run ran out of memory and goes on, from the step under way, as `execution` says."""

    type: Literal["adjusted"] = "adjusted"
    run: str
    execution: Execution


class Step(Line):
    """One optimizer step. Loss and accuracy are means over the step's trained weight, before the update.

    For DPO they are means over its pairs: `token_accuracy` is the share of pairs whose chosen answer has the
    higher reward, and the rewards are beta times how much likelier the policy makes an answer than its reference.
    """

    type: Literal["step"] = "step"
    run: str
    step: int  # 1-based
    epoch: int  # 1-based
    loss: float
    token_accuracy: float
    learning_rate: float
    gradient_norm: float
    tokens: int  # all real tokens of the step's examples
    trained_tokens: int  # those with a weight above zero
    seconds: float
    reward_chosen: float | None = None  # these two for DPO only
    reward_rejected: float | None = None


class Evaluation(Line):
    """Validation loss after `step`: over a fixed sample (`valid`) or over every row (`full_valid`).

    For DPO accuracy and rewards are those of `Step`.
    """

    type: Literal["evaluation"] = "evaluation"
    run: str
    step: int
    kind: Literal["valid", "full_valid"]
    loss: float
    token_accuracy: float
    reward_chosen: float | None = None
    reward_rejected: float | None = None


class Checkpoint(Line):
    """A complete checkpoint lies in `directory` (adapter/ and state/); it is no longer written to.

    `is_last` says that the run takes no step after it, because it has taken all or stops early.
    """

    type: Literal["checkpoint"] = "checkpoint"
    run: str
    step: int
    epoch_end: bool
    is_last: bool = False
    directory: str


class Finished(Line):
    """The run is complete after `step`, its last: `directory` holds the adapter as a standard PEFT directory."""

    type: Literal["finished"] = "finished"
    run: str
    step: int
    directory: str


class Stopped(Line):
    """The run ended because it was told to; with a checkpoint, that event came before."""

    type: Literal["stopped"] = "stopped"
    run: str
    step: int


class Failed(Line):
    type: Literal["failed"] = "failed"
    run: str
    code: str
    message: str
    param: str | None
    blame: Blame


Event = Annotated[
    Ready | Tick | Started | Adjusted | Step | Evaluation | Checkpoint | Finished | Stopped | Failed,
    Field(discriminator="type"),
]

commands: TypeAdapter[Start | Stop] = TypeAdapter(Command)
events: TypeAdapter[
    Ready | Tick | Started | Adjusted | Step | Evaluation | Checkpoint | Finished | Stopped | Failed
] = TypeAdapter(Event)
