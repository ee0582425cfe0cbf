"""Checkpoints: `adapter/` (a PEFT directory) and `state/` (what an exact resume needs besides,
the best adapter so far included where the run keeps it).

Adapter and moments are float32, so nothing is lost in the file. The schedule and the data position
follow from the step number, and all randomness from (seed, step), so neither is stored; the seed of
the next step is, to notice a version of this code that would derive another one.
"""

import shutil
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from worker.contract.errors import Blame, TrainError
from worker.contract.spec import TrainSpec
from worker.engine import adapters
from worker.engine.seeds import step_seed

_MOMENTS = ("exp_avg", "exp_avg_sq")


class State(BaseModel):
    """Where a run stands after `step` steps. `spec` holds the execution that was really used."""

    version: Literal[1] = 1
    spec: TrainSpec
    step: int
    data: str  # fingerprint of the training examples
    next_step_seed: int
    trained_tokens: int
    train_loss: float | None = None
    valid_loss: float | None = None
    full_valid_loss: float | None = None
    best_loss: float | None = None  # the lowest valid_loss so far, and its step
    best_step: int | None = None
    evaluations_since_best: int = 0


def save(directory: Path, adapter: PeftModel, optimizer: torch.optim.AdamW, state: State, best: Path) -> None:
    """Write a checkpoint that is either whole or not there.

    Nothing is flushed to the disk: what outlives a power cut is the copy in storage; this one's directory is wiped.
    `best` is where the best adapter so far lies, if one is kept; the checkpoint keeps it too.
    """
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(directory, ignore_errors=True)  # of a run that was killed after it and resumed from before it
    partial.mkdir(parents=True)
    adapters.save(adapter, partial / "adapter", base_id=state.spec.base.id)
    (partial / "state").mkdir()
    save_file(_moments(adapter, optimizer), partial / "state" / "optimizer.safetensors")
    (partial / "state" / "state.json").write_text(state.model_dump_json(indent=2) + "\n")
    if best.is_dir():
        shutil.copytree(best, kept_best(partial))
    partial.rename(directory)


def kept_best(directory: Path) -> Path:
    """Where a checkpoint has the best adapter before or at its step, if its run keeps one."""
    return directory / "state" / "best"


def read_state(directory: Path) -> State:
    """TrainError if the directory is not a checkpoint that this version can read."""
    try:
        return State.model_validate_json((directory / "state" / "state.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise _unreadable() from error


def check(state: State, spec: TrainSpec, data: str) -> None:
    """TrainError unless the checkpoint belongs to this run: same spec but for the execution, same examples."""
    problem = None
    stored, asked = (given.model_dump(exclude={"execution"}) for given in (state.spec, spec))
    if stored != asked:
        fields = sorted(name for name in asked if stored[name] != asked[name])
        problem = f"its spec differs in {', '.join(fields)}"
    elif state.data != data:
        problem = "it was made with other training examples"
    elif state.next_step_seed != step_seed(spec.seed, state.step + 1):
        problem = "it was made with other random streams"
    if problem is not None:
        raise TrainError(
            "checkpoint_mismatch", f"The checkpoint does not belong to this run: {problem}.", blame=Blame.INTERNAL
        )


def restore(directory: Path, adapter: PeftModel, optimizer: torch.optim.AdamW, state: State) -> None:
    """Put adapter and moments back, bit for bit."""
    try:
        adapters.restore(adapter, directory / "adapter")
        moments = load_file(directory / "state" / "optimizer.safetensors")
        for name, parameter in adapters.parameters(adapter).items():
            optimizer.state[parameter] = {
                # fused AdamW counts in a tensor beside the parameter
                "step": torch.tensor(float(state.step), dtype=torch.float32, device=parameter.device),
                **{moment: moments[f"{moment}.{name}"].to(parameter.device) for moment in _MOMENTS},
            }
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise _unreadable() from error


def _moments(adapter: PeftModel, optimizer: torch.optim.AdamW) -> dict[str, torch.Tensor]:
    return {
        f"{moment}.{name}": optimizer.state[parameter][moment].cpu()
        for name, parameter in adapters.parameters(adapter).items()
        for moment in _MOMENTS
    }


def _unreadable() -> TrainError:
    return TrainError("checkpoint_unreadable", "The checkpoint cannot be read.", blame=Blame.INTERNAL)
