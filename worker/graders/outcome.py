"""What grading a sample comes to."""

from dataclasses import dataclass, field, fields

from worker.graders.faults import GraderFault

Usage = dict[str, int]


@dataclass
class Errors:
    """`metadata.errors` of the answer, and the sentences behind them."""

    formula_parse_error: bool = False
    sample_parse_error: bool = False
    truncated_observation_error: bool = False
    unresponsive_reward_error: bool = False
    invalid_variable_error: bool = False
    other_error: bool = False
    python_grader_server_error: bool = False
    python_grader_server_error_type: str | None = None
    python_grader_runtime_error: bool = False
    python_grader_runtime_error_details: str | None = None
    model_grader_server_error: bool = False
    model_grader_refusal_error: bool = False
    model_grader_parse_error: bool = False
    model_grader_server_error_details: str | None = None

    def note(self, fault: GraderFault) -> None:
        for flag in fault.flags:
            setattr(self, flag, True)
        if "python_grader_server_error" in fault.flags:
            self.python_grader_server_error_type = fault.server_error_type
        if "python_grader_runtime_error" in fault.flags:
            self.python_grader_runtime_error_details = fault.sentence
        if "model_grader_server_error" in fault.flags:
            self.model_grader_server_error_details = fault.sentence

    def merge(self, other: "Errors") -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) or getattr(other, each.name))


@dataclass
class Outcome:
    """`reward` is 0 where something failed; `sentences` then say what, one for each fault.

    `scores` are figures behind a reward: those of a multi grader's parts, or a similarity that a threshold turned
    into 1 or 0. `usage` counts tokens for each model that was asked.
    """

    reward: float = 0.0
    sub_rewards: dict[str, float] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    usage: dict[str, Usage] = field(default_factory=dict)
    model: str | None = None
    errors: Errors = field(default_factory=Errors)
    sentences: list[str] = field(default_factory=list)

    @classmethod
    def of_fault(cls, fault: GraderFault) -> "Outcome":
        outcome = cls(sentences=[fault.sentence])
        outcome.errors.note(fault)
        return outcome

    def count(self, model: str, usage: Usage) -> None:
        known = self.usage.setdefault(model, {})
        for name, tokens in usage.items():
            known[name] = known.get(name, 0) + tokens
