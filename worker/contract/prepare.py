"""What the preparing child is asked and what it answers: one request in, token files and one report out."""

from datetime import date
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_LISTED_ERRORS = 20
REPORT_NAME = "report.json"


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ProcessLimits(Frozen):
    """Hard limits of the child itself; beyond the first two the kernel ends it, so it leaves no report."""

    memory_bytes: int = Field(default=4 << 30, ge=1)  # address space
    cpu_seconds: int = Field(default=600, ge=1)
    file_bytes: int = Field(default=8 << 30, ge=1)  # the largest file it may write


class DataLimits(Frozen):
    """What a data file may hold; beyond it the file is refused."""

    max_rows: int = Field(default=1_000_000, ge=1)
    max_line_bytes: int = Field(default=8 << 20, ge=1)


class PrepareRequest(Frozen):
    """All paths are on this machine. `rendering_date` is today to a chat template that asks for the date.

    `method` says what rows the files must hold; the ids of the files are what refusals call them.
    """

    method: Literal["supervised", "dpo"] = "supervised"
    base_directory: str
    training_file: str
    validation_file: str | None = None
    training_file_id: str | None = None
    validation_file_id: str | None = None
    output_directory: str
    max_sequence_tokens: int = Field(ge=1)
    rendering_date: date
    train_on_last_turn_only: bool = False  # of conversations: no weight on earlier assistant messages
    data: DataLimits = DataLimits()
    process: ProcessLimits = ProcessLimits()


class RowError(Frozen):
    """One refused line: `line` is 1-based, `field` a path such as `messages[1].role`, `message` a sentence."""

    line: int
    field: str | None
    message: str


class FileReport(Frozen):
    """Counts of one file, after truncation; `num_*` leave out the skipped examples and refused lines.

    An example of a preference file is a pair; the tokens of its prompt count once.
    """

    tokens_path: str | None  # the token file or pair file; None if the file was refused
    num_examples: int
    num_tokens: int
    num_trained_tokens: int
    max_example_tokens: int
    truncated: int  # examples cut at max_sequence_tokens, but still trained on
    skipped: int  # examples left out because the cut took every trained token, or all that two answers differ in
    special_strings_in_content: int  # special-token strings in the data, encoded as ordinary text
    duplicates: int = 0  # examples that equal an earlier one, token for token; they are trained on too
    errors: list[RowError] = Field(max_length=MAX_LISTED_ERRORS)
    num_errors: int


class Verdict(Frozen):
    """Why the job must fail, for its owner; the same fields as a job's `error`."""

    code: Literal["invalid_training_file", "invalid_validation_file", "invalid_file_format", "invalid_n_examples"]
    message: str
    param: Literal["training_file", "validation_file"]


class PrepareReport(Frozen):
    training: FileReport
    validation: FileReport | None
    error: Verdict | None
