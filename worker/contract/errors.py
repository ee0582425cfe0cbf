"""Errors of training that say whose fault they are and survive a process boundary."""

from enum import StrEnum


class Blame(StrEnum):
    USER = "user"  # the job fails with line and reason; trying again would not help
    TRANSIENT = "transient"  # tried again later, not counted
    INTERNAL = "internal"  # counted as a crash; the detail is in the log


class TrainError(Exception):
    """Ends a run. `message` is for the job's owner, `param` names the field of the job at fault, if one is."""

    def __init__(self, code: str, message: str, *, param: str | None = None, blame: Blame = Blame.USER) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.blame = blame
