"""The short-lived child that checks data files and turns them into token files: no GPU, no secret, no torch.

    python -m worker.prepare REQUEST [PARENT_PID]

REQUEST is the path of a JSON PrepareRequest, or `fd:N` for an inherited descriptor to read it from.
The token files come first and `report.json` last, so a report means that the work is done. Without one
the child died of its limits (SIGXCPU, SIGKILL, an abort), or the base directory is unusable: then it exits
with 1 and a traceback on stderr. A refused data file is a report like any other.
"""

import os
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Literal

import orjson

from worker.child import bind, die_with_parent
from worker.contract.formats import (
    ChatRow,
    CompletionRow,
    Fault,
    FormatError,
    PreferenceRow,
    SupervisedRow,
    parse_preference,
    parse_row,
)
from worker.contract.prepare import (
    MAX_LISTED_ERRORS,
    REPORT_NAME,
    FileReport,
    PrepareReport,
    PrepareRequest,
    ProcessLimits,
    RowError,
    Verdict,
)
from worker.data import pair_file, pairs, rows, token_file
from worker.data.pairs import PairExample
from worker.data.tokenize import Example, RowTokenizer

MIN_TRAINING_EXAMPLES = 10
BATCH_ROWS = 256
BATCH_BYTES = 4 << 20
MAX_THREADS = 4
MAX_OPEN_FILES = 256
ENDING_FAULTS = (Fault.FILE, Fault.METHOD)  # all lines after this one would be refused alike
Row = SupervisedRow | PreferenceRow
FORMAT_NAMES = {True: "prompt/completion pairs", False: "chat messages"}


def main(arguments: list[str]) -> int:
    source, *parent = arguments
    die_with_parent(int(parent[0]) if parent else None)
    raw = _read_all(int(source[3:])) if source.startswith("fd:") else Path(source).read_bytes()
    request = PrepareRequest.model_validate_json(raw)
    limit_process(request.process)
    report = run_prepare(request)
    path = Path(request.output_directory) / REPORT_NAME
    partial = path.with_suffix(".partial")
    partial.write_text(report.model_dump_json(), encoding="utf-8")
    partial.replace(path)
    return 0


def run_prepare(request: PrepareRequest) -> PrepareReport:
    """Check and encode the files of one job; writes token files to the output directory, nothing else.

    Blocks. What is wrong with the data is in the report; OSError, ValueError or TemplateError mean that
    a path or the base directory is unusable.
    """
    output = Path(request.output_directory)
    tokenizer = RowTokenizer(
        request.base_directory, request.rendering_date, last_turn_only=request.train_on_last_turn_only
    )
    training = _FileRun(
        "training_file", request.training_file_id, Path(request.training_file), output / "training.safetensors"
    )
    training.prepare(tokenizer, request)
    error = training.verdict(min_examples=MIN_TRAINING_EXAMPLES)
    validation = None
    if request.validation_file is not None:
        validation = _FileRun(
            "validation_file",
            request.validation_file_id,
            Path(request.validation_file),
            output / "validation.safetensors",
        )
        validation.is_completion = training.is_completion
        validation.prepare(tokenizer, request)
        error = error or validation.verdict(min_examples=1)
    return PrepareReport(
        training=training.report(), validation=validation.report() if validation is not None else None, error=error
    )


def _read_all(descriptor: int) -> bytes:
    """To its end; then nothing is there any more, and no file opened later can take its place."""
    with os.fdopen(descriptor, "rb", closefd=False) as stream:
        raw = stream.read()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, descriptor)
    os.close(null)
    return raw


def limit_process(limits: ProcessLimits) -> None:
    """Bind this process to the limits for good; few threads for the tokenizer, and files that only we can read."""
    # Each thread reserves address space, of which a machine with many cores would use up the limit.
    os.environ.setdefault("RAYON_NUM_THREADS", str(min(MAX_THREADS, os.cpu_count() or 1)))
    os.umask(0o077)
    bind(
        {
            resource.RLIMIT_AS: limits.memory_bytes,
            resource.RLIMIT_CPU: limits.cpu_seconds,
            resource.RLIMIT_FSIZE: limits.file_bytes,
            resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
        },
        grace={resource.RLIMIT_CPU: 1},  # at the hard limit it would be SIGKILL, which tells nothing
    )


@dataclass
class _FileRun:
    """One file on its way: what was counted and what was wrong so far."""

    param: Literal["training_file", "validation_file"]
    file_id: str | None
    source: Path
    target: Path
    is_completion: bool | None = None  # of the first good row, which all others must be like
    first_fault: Fault | None = None
    errors: list[RowError] = field(default_factory=list)
    num_errors: int = 0
    num_examples: int = 0
    num_tokens: int = 0
    num_trained_tokens: int = 0
    max_example_tokens: int = 0
    truncated: int = 0
    skipped: int = 0
    special_strings: int = 0
    duplicates: int = 0
    seen: set[bytes] = field(default_factory=set)  # hashes of the examples so far, of 16 bytes each

    def prepare(self, tokenizer: RowTokenizer, request: PrepareRequest) -> None:
        with self.source.open("rb") as file:
            examples = self._examples(file, tokenizer, request)
            if request.method == "dpo":
                found = (one for one in examples if isinstance(one, PairExample))
                pair_file.write(self.target, ((one.prompt, one.chosen, one.rejected) for one in found))
            else:
                found = (one for one in examples if isinstance(one, Example))
                token_file.write(self.target, ((one.tokens, one.weights) for one in found))
        if self.num_errors:
            self.target.unlink()

    def _examples(
        self, file: BinaryIO, tokenizer: RowTokenizer, request: PrepareRequest
    ) -> Iterator[Example | PairExample]:
        limit = request.max_sequence_tokens
        for batch in self._batches(file, request):
            encoded: Iterator[Example | PairExample | FormatError]
            if request.method == "dpo":
                preferences = [row for _, row in batch if isinstance(row, PreferenceRow)]
                encoded = iter(pairs.tokenize(tokenizer, preferences, max_sequence_tokens=limit))
            else:
                supervised = [row for _, row in batch if isinstance(row, ChatRow | CompletionRow)]
                encoded = iter(tokenizer.tokenize(supervised, max_sequence_tokens=limit))
            for line, row in batch:
                example = row if isinstance(row, FormatError) else next(encoded)
                if isinstance(example, FormatError):
                    self._refuse(line, example)
                    if example.fault in ENDING_FAULTS:
                        return
                elif self._count(example):
                    yield example

    def _batches(self, file: BinaryIO, request: PrepareRequest) -> Iterator[list[tuple[int, Row | FormatError]]]:
        """Lines with their rows, or what is wrong with them, in batches small enough to hold in memory."""
        batch: list[tuple[int, Row | FormatError]] = []
        batch_start = 0
        limits = request.data
        for line, value in rows.read_rows(file, max_rows=limits.max_rows, max_line_bytes=limits.max_line_bytes):
            batch.append((line, self._parsed(value, request.method)))
            if len(batch) == BATCH_ROWS or file.tell() - batch_start > BATCH_BYTES:
                yield batch
                batch, batch_start = [], file.tell()
        yield batch

    def _parsed(self, value: dict[str, Any] | FormatError, method: str) -> Row | FormatError:
        if isinstance(value, FormatError):
            return value
        try:
            if method == "dpo":
                return parse_preference(value)
            row = parse_row(value)
            self._check_kind(row)
        except FormatError as error:
            return error
        return row

    def _check_kind(self, row: SupervisedRow) -> None:
        is_completion = isinstance(row, CompletionRow)
        if self.is_completion is None:
            self.is_completion = is_completion
        if is_completion != self.is_completion:
            raise FormatError(
                f"has {FORMAT_NAMES[is_completion]}, but the job's data began with {FORMAT_NAMES[self.is_completion]}"
            )

    def _refuse(self, line: int, error: FormatError) -> None:
        self.num_errors += 1
        self.first_fault = self.first_fault or error.fault
        if len(self.errors) < MAX_LISTED_ERRORS:
            self.errors.append(RowError(line=line, field=error.field, message=error.sentence(line)))

    def _count(self, example: Example | PairExample) -> bool:
        """Count the example; whether it is trained on."""
        self.special_strings += example.num_special_strings
        digest = blake2b(orjson.dumps(example), digest_size=16).digest()
        self.duplicates += digest in self.seen
        self.seen.add(digest)
        if not example.num_trained_tokens:
            self.skipped += 1
            return False
        self.truncated += example.is_truncated
        self.num_examples += 1
        self.num_tokens += example.num_tokens
        self.num_trained_tokens += example.num_trained_tokens
        self.max_example_tokens = max(self.max_example_tokens, example.num_tokens)
        return True

    def report(self) -> FileReport:
        return FileReport(
            tokens_path=str(self.target) if not self.num_errors else None,
            num_examples=self.num_examples,
            num_tokens=self.num_tokens,
            num_trained_tokens=self.num_trained_tokens,
            max_example_tokens=self.max_example_tokens,
            truncated=self.truncated,
            skipped=self.skipped,
            special_strings_in_content=self.special_strings,
            duplicates=self.duplicates,
            errors=self.errors,
            num_errors=self.num_errors,
        )

    def verdict(self, *, min_examples: int) -> Verdict | None:
        """Why the job must fail because of this file, in OpenAI's words, or None."""
        is_training = self.param == "training_file"
        kind = "training" if is_training else "validation"
        if self.errors:
            first = self.errors[0]
            place = f"line {first.line}" + (f", field {first.field}" if first.field else "")
            others = f"; {self.num_errors} lines are invalid" if self.num_errors > 1 else ""
            is_extra = self.first_fault is Fault.EXTRA_KEY
            cause = f"a file format error in the {kind} file" if is_extra else f"an invalid {kind} file"
            detail = first.message if self.first_fault in ENDING_FAULTS else f"Invalid file format. {first.message}"
            if self.file_id is not None:  # whoever checks a line knows no file
                detail = detail.replace("Input file is", f"Input file {self.file_id} is", 1)
            code = "invalid_file_format" if is_extra else "invalid_training_file"
            return Verdict(
                code=code if is_training else "invalid_validation_file",
                message=f"The job failed due to {cause}. {detail} ({place}{others})",
                param=self.param,
            )
        if self.num_examples >= min_examples:
            return None
        message = (
            f"{kind.capitalize()} file has {self.num_examples} example(s), "
            f"but must have at least {min_examples} example{'s' if min_examples > 1 else ''}"
        )
        if self.skipped:
            message += f" ({self.skipped} left out: too long, and cut before the first token to train on)"
        return Verdict(
            code="invalid_n_examples" if is_training else "invalid_validation_file", message=message, param=self.param
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
