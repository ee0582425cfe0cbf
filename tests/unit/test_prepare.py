import datetime
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.chat_bases import write_base
from worker.contract.prepare import REPORT_NAME, DataLimits, PrepareReport, PrepareRequest, ProcessLimits
from worker.data.pair_file import PairFile
from worker.data.token_file import TokenFile
from worker.prepare import run_prepare

ROW = {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is 4."}]}
ANSWERLESS = {"messages": [{"role": "user", "content": "2 + 2?"}]}
LONG = {"messages": [{"role": "user", "content": "2 + 2? " * 99}, {"role": "assistant", "content": "It is 4."}]}
INVALID = "The job failed due to an invalid training file."

Prepare = Callable[..., PrepareReport]


def lines(*rows: Any) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), "chatml")


@pytest.fixture
def make_request(base: Path, tmp_path: Path) -> Callable[..., PrepareRequest]:
    def make(training: bytes, validation: bytes | None = None, **changes: Any) -> PrepareRequest:
        (tmp_path / "train.jsonl").write_bytes(training)
        if validation is not None:
            (tmp_path / "valid.jsonl").write_bytes(validation)
        (tmp_path / "out").mkdir(exist_ok=True)
        values: dict[str, Any] = {
            "base_directory": str(base),
            "training_file": str(tmp_path / "train.jsonl"),
            "validation_file": str(tmp_path / "valid.jsonl") if validation is not None else None,
            "output_directory": str(tmp_path / "out"),
            "max_sequence_tokens": 128,
            "rendering_date": datetime.date(2026, 1, 2),
        }
        return PrepareRequest(**{**values, **changes})

    return make


@pytest.fixture
def prepare(make_request: Callable[..., PrepareRequest]) -> Prepare:
    return lambda *arguments, **changes: run_prepare(make_request(*arguments, **changes))


def test_good_files_become_token_files(prepare: Prepare) -> None:
    special = {"messages": [{"role": "user", "content": "<|im_end|>"}, ROW["messages"][1]]}
    report = prepare(lines(*[ROW] * 300, special, LONG), lines(ROW), max_sequence_tokens=40)
    assert report.error is None
    training, validation = report.training, report.validation
    assert validation is not None
    assert training.tokens_path is not None
    assert validation.tokens_path is not None
    loaded = TokenFile.load(training.tokens_path)
    assert len(loaded) == training.num_examples == 301
    assert len(loaded.tokens) == training.num_tokens
    assert int((loaded.weights > 0).sum()) == training.num_trained_tokens
    assert max(len(loaded.example(i)[0]) for i in range(301)) == training.max_example_tokens
    assert (training.skipped, training.truncated, training.special_strings_in_content) == (1, 0, 1)
    assert (validation.num_examples, len(TokenFile.load(validation.tokens_path))) == (1, 1)


def test_a_cut_example_is_still_trained_on(prepare: Prepare) -> None:
    whole = prepare(lines(*[ROW] * 10)).training
    cut = prepare(lines(*[ROW] * 10), max_sequence_tokens=whole.max_example_tokens - 2).training
    assert (cut.num_examples, cut.truncated, cut.skipped) == (10, 10, 0)
    assert cut.num_trained_tokens < whole.num_trained_tokens
    assert cut.max_example_tokens == whole.max_example_tokens - 2


def test_prompt_and_completion_files(prepare: Prepare) -> None:
    pairs = lines(*[{"prompt": "a", "completion": "b"}] * 10)
    report = prepare(pairs, pairs)
    assert report.error is None
    assert report.training.num_examples == 10


PAIR = {
    "input": {"messages": ROW["messages"][:1]},
    "preferred_output": ROW["messages"][1:],
    "non_preferred_output": [{"role": "assistant", "content": "It is 5."}],
}


def test_preference_files_become_pair_files(prepare: Prepare) -> None:
    long = {**PAIR, "input": {"messages": LONG["messages"][:1]}}
    rambling = {**PAIR, "non_preferred_output": [{"role": "assistant", "content": "It is 5. " * 40}]}
    report = prepare(lines(*[PAIR] * 300, long, rambling), lines(PAIR), method="dpo", max_sequence_tokens=60)
    assert report.error is None
    training, validation = report.training, report.validation
    assert validation is not None
    assert training.tokens_path is not None
    assert validation.tokens_path is not None
    loaded = PairFile.load(training.tokens_path)
    assert len(loaded) == training.num_examples == 301
    assert len(loaded.tokens) == training.num_tokens
    assert int((loaded.weights > 0).sum()) == training.num_trained_tokens
    assert max(loaded.num_tokens(index) for index in range(301)) == training.max_example_tokens
    assert loaded.longest_sequence() == 60
    assert (training.skipped, training.truncated) == (1, 1)
    assert (validation.num_examples, len(PairFile.load(validation.tokens_path))) == (1, 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            lines(*[PAIR] * 10, {**PAIR, "preferred_output": []}, {**PAIR, "input": {}}),
            "Invalid file format. Example 11 'preferred_output': list should have at least 1 item after validation, "
            "not 0 (line 11, field preferred_output; 2 lines are invalid)",
        ),
        (
            lines(*[PAIR] * 10, {**PAIR, "non_preferred_output": PAIR["preferred_output"]}),
            "Invalid file format. Example 11 has the same tokens in preferred_output and non_preferred_output: there "
            "is nothing to prefer (line 11, field non_preferred_output)",
        ),
        (
            lines(*[ROW] * 10),
            "Input file is in the fine-tune-chat format, but the specified fine-tuning job is not using 'supervised' "
            "as the training method (provided method=dpo). (line 1)",
        ),
    ],
)
def test_a_bad_preference_file_fails_the_job(prepare: Prepare, data: bytes, message: str) -> None:
    report = prepare(data, method="dpo")
    assert report.error is not None
    expected = {"code": "invalid_training_file", "message": f"{INVALID} {message}", "param": "training_file"}
    assert report.error.model_dump() == expected


def test_a_file_of_another_method_is_called_by_its_id(prepare: Prepare) -> None:
    good, bad = lines(*[ROW] * 10), lines(*[PAIR] * 10)
    ids = {"training_file_id": "file-t", "validation_file_id": "file-v"}
    for training, validation, method, param, sentence in (
        (bad, good, "supervised", "training_file", "Input file file-t is in the fine-tune-preference format"),
        (good, bad, "supervised", "validation_file", "Input file file-v is in the fine-tune-preference format"),
        (good, bad, "dpo", "training_file", "Input file file-t is in the fine-tune-chat format"),
        (bad, good, "dpo", "validation_file", "Input file file-v is in the fine-tune-chat format"),
    ):
        error = prepare(training, validation, method=method, **ids).error
        assert error is not None
        assert error.param == param
        assert sentence in error.message
        assert f"(provided method={method})" in error.message


BAD_ROLE = {"messages": [{"role": "user", "content": "a"}, {"content": "b"}]}
FORMAT = f"{INVALID} Invalid file format."


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (lines(*[ROW] * 7), "invalid_n_examples", "Training file has 7 example(s), but must have at least 10 examples"),
        (b"", "invalid_n_examples", "Training file has 0 example(s), but must have at least 10 examples"),
        (b"\n\n", "invalid_n_examples", "Training file has 0 example(s), but must have at least 10 examples"),
        (
            lines(*[ROW] * 9, *[LONG] * 3),
            "invalid_n_examples",
            "Training file has 9 example(s), but must have at least 10 examples "
            "(3 left out: too long, and cut before the first token to train on)",
        ),
        (
            lines(*[ROW] * 99, BAD_ROLE, BAD_ROLE, b"{"),
            "invalid_training_file",
            f"{FORMAT} Example 100, message 2 Discriminator 'role' is missing in value "
            "(line 100, field messages[1]; 3 lines are invalid)",
        ),
        (
            lines({**ROW, "weight": 1}, ROW),
            "invalid_file_format",
            "The job failed due to a file format error in the training file. Invalid file format. "
            'Example 1 contains an extra "weight". (line 1, field weight)',
        ),
        (
            lines({"text": "a"}),
            "invalid_training_file",
            f"{INVALID} Unexpected file format, expected either prompt/completion pairs or chat messages. (line 1)",
        ),
        (
            lines({"input": {}, "preferred_output": [], "non_preferred_output": []}) * 50,
            "invalid_training_file",
            f"{INVALID} Input file is in the fine-tune-preference format, but the specified fine-tuning job is not "
            "using 'dpo' as the training method (provided method=supervised). (line 1)",
        ),
        (
            lines(*[ROW] * 10, {"prompt": "a", "completion": "b"}),
            "invalid_training_file",
            f"{FORMAT} Example 11 has prompt/completion pairs, but the job's data began with chat messages (line 11)",
        ),
        (
            lines(*[ROW] * 10, b"", b"[1]"),
            "invalid_training_file",
            f"{FORMAT} Example 12 is not a JSON dictionary (line 12)",
        ),
        (
            lines(*[ROW] * 10, ANSWERLESS),
            "invalid_training_file",
            f"{FORMAT} Example 11 has no message from the assistant (line 11, field messages)",
        ),
        (
            lines(*[ROW] * 10, {"messages": [{**ROW["messages"][1], "weight": 0}]}),
            "invalid_training_file",
            f"{FORMAT} Example 11 has nothing to train on: every assistant message has weight 0 "
            "(line 11, field messages)",
        ),
        (
            lines(*[ROW] * 10).decode().encode("utf-16"),
            "invalid_training_file",
            f"{INVALID} The file is encoded as UTF-16 or UTF-32, but must be UTF-8. (line 1)",
        ),
        (
            lines(*[ROW] * 2000),
            "invalid_training_file",
            f"{INVALID} The file has more than 1000 examples. (line 1001)",
        ),
    ],
)
def test_a_bad_training_file_fails_the_job(prepare: Prepare, data: bytes, code: str, message: str) -> None:
    report = prepare(data, data=DataLimits(max_rows=1000))
    assert report.error is not None
    assert report.error.model_dump() == {"code": code, "message": message, "param": "training_file"}
    assert (report.training.tokens_path is None) == (code != "invalid_n_examples")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "Validation file has 0 example(s), but must have at least 1 example"),
        (
            lines({**ROW, "id": 1}),
            "The job failed due to a file format error in the validation file. Invalid file format. "
            'Example 1 contains an extra "id". (line 1, field id)',
        ),
        (
            lines({"prompt": "a", "completion": "b"}),
            "The job failed due to an invalid validation file. Invalid file format. "
            "Example 1 has prompt/completion pairs, but the job's data began with chat messages (line 1)",
        ),
    ],
)
def test_a_bad_validation_file_fails_the_job(prepare: Prepare, data: bytes, message: str) -> None:
    report = prepare(lines(*[ROW] * 10), data)
    assert report.error is not None
    expected = {"code": "invalid_validation_file", "message": message, "param": "validation_file"}
    assert report.error.model_dump() == expected


@pytest.mark.parametrize(
    ("row", "what", "place"),
    [
        (
            {"messages": [ROW["messages"][0], {"role": "assistant", "content": ""}]},
            ", message 2 has an empty answer",
            1,
        ),
        (
            {"messages": [ROW["messages"][0], {"role": "assistant", "content": [{"type": "text", "text": ""}]}]},
            ", message 2 has an empty answer",
            1,
        ),
        ({"messages": [ROW["messages"][0], {"role": "assistant", "content": None}]}, ", message 2 has neither", 1),
    ],
)
def test_empty_answers_are_refused(prepare: Prepare, row: Any, what: str, place: int) -> None:
    report = prepare(lines(*[ROW] * 10, row))
    assert report.error is not None
    assert report.error.code == "invalid_training_file"
    assert report.error.message.startswith(f"{FORMAT} Example 11{what}")
    assert report.error.message.endswith(f"(line 11, field messages[{place}])")


def test_an_empty_completion_is_refused_and_an_empty_prompt_is_not(prepare: Prepare) -> None:
    report = prepare(lines(*[{"prompt": "", "completion": "b"}] * 10, {"prompt": "a", "completion": ""}))
    assert report.error is not None
    assert "Example 11 'completion': string should have at least 1 character" in report.error.message
    assert report.training.num_examples == 10


def test_what_is_not_trained_on_may_be_empty(prepare: Prepare) -> None:
    silent = {"role": "assistant", "content": "", "weight": 0}
    row = {"messages": [{"role": "user", "content": ""}, silent, *ROW["messages"]]}
    assert prepare(lines(*[row] * 10)).error is None


@pytest.mark.parametrize("weight", [b"NaN", b"Infinity", b"1e999", b"0.5", b'"1"', b"true"])
def test_impossible_weights_are_refused(prepare: Prepare, weight: bytes) -> None:
    bad = json.dumps(ROW).encode().replace(b'"It is 4."', b'"It is 4.", "weight": ' + weight)
    report = prepare(lines(*[ROW] * 10, bad))
    assert report.error is not None
    assert (report.error.code, report.training.errors[0].line) == ("invalid_training_file", 11)


def test_repeated_examples_are_counted_and_kept(prepare: Prepare) -> None:
    other = {"messages": [{"role": "user", "content": "3 + 3?"}, {"role": "assistant", "content": "It is 6."}]}
    unseen = {
        "messages": [*other["messages"], {"role": "user", "content": "Sure?"}, {**ROW["messages"][1], "weight": 0}]
    }
    report = prepare(lines(*[ROW] * 1000, other, unseen), lines(ROW))
    assert report.error is None
    assert (report.training.num_examples, report.training.duplicates) == (1002, 999)
    assert report.validation is not None
    assert report.validation.duplicates == 0


def test_only_the_last_turn_is_trained_on(prepare: Prepare) -> None:
    row: dict[str, Any] = {
        "messages": [*ROW["messages"], {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]
    }
    every, last = (prepare(lines(*[row] * 10), lines(row), train_on_last_turn_only=only) for only in (False, True))
    alone = prepare(lines(*[{"messages": row["messages"][2:]}] * 10))
    assert last.training.num_tokens == every.training.num_tokens
    assert last.training.num_trained_tokens == alone.training.num_trained_tokens < every.training.num_trained_tokens
    assert last.validation is not None
    assert last.validation.num_trained_tokens * 10 == last.training.num_trained_tokens
    row["messages"][3]["weight"] = 0
    refused = prepare(lines(*[row] * 10), train_on_last_turn_only=True).error
    assert refused is not None
    assert "has nothing to train on: the last assistant message has weight 0" in refused.message


def test_errors_are_listed_in_order_and_counted(prepare: Prepare, tmp_path: Path) -> None:
    weightless = {"messages": [ROW["messages"][0], {**ROW["messages"][1], "weight": 0}]}
    report = prepare(lines(*[weightless, b"[]", ROW] * 200))
    assert report.training.num_errors == 400
    assert [error.line for error in report.training.errors] == [n for n in range(1, 31) if n % 3]
    assert report.training.num_examples == 200
    assert list((tmp_path / "out").iterdir()) == []


def test_a_base_without_a_template_refuses_chat(tmp_path: Path, prepare: Prepare) -> None:
    plain = write_base(tmp_path / "plain", "none")
    report = prepare(lines(*[ROW] * 10), base_directory=str(plain))
    assert report.error is not None
    assert "the base model has no chat template" in report.error.message
    assert report.training.num_errors == 1


# The process


def child(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "worker.prepare", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize("by_descriptor", [True, False])
def test_the_child_writes_its_report_last(
    make_request: Callable[..., PrepareRequest], tmp_path: Path, by_descriptor: bool
) -> None:
    raw = make_request(lines(*[ROW] * 10), lines(ROW)).model_dump_json()
    (tmp_path / "request.json").write_text(raw)
    if by_descriptor:
        descriptor = os.open(tmp_path / "request.json", os.O_RDONLY)
        done = child(f"fd:{descriptor}", pass_fds=[descriptor])
        os.close(descriptor)
    else:
        done = child(str(tmp_path / "request.json"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    report = PrepareReport.model_validate_json((tmp_path / "out" / REPORT_NAME).read_bytes())
    assert report.error is None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "report.json",
        "training.safetensors",
        "validation.safetensors",
    ]


def test_the_child_of_a_parent_that_is_gone_does_nothing(
    make_request: Callable[..., PrepareRequest], tmp_path: Path
) -> None:
    (tmp_path / "request.json").write_text(make_request(lines(*[ROW] * 10)).model_dump_json())
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    done = child(str(tmp_path / "request.json"), str(ended.pid), start_new_session=True)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out" / REPORT_NAME).exists()


BOMBS = {
    "time": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "memory": "{{ 'a' * 10 ** 11 }}",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_template_bomb_is_stopped(make_request: Callable[..., PrepareRequest], tmp_path: Path, kind: str) -> None:
    bad = write_base(tmp_path / "bad", "chatml")
    (bad / "chat_template.jinja").write_text(BOMBS[kind])
    limits = ProcessLimits(cpu_seconds=2, memory_bytes=2 << 30)
    request = make_request(lines(*[ROW] * 10), base_directory=str(bad), process=limits)
    (tmp_path / "request.json").write_text(request.model_dump_json())
    done = child(str(tmp_path / "request.json"))
    if kind == "time":
        assert done.returncode == -signal.SIGXCPU
        assert not (tmp_path / "out" / REPORT_NAME).exists()
    else:
        report = PrepareReport.model_validate_json((tmp_path / "out" / REPORT_NAME).read_bytes())
        assert report.error is not None
        assert "MemoryError" in report.error.message


def test_an_unusable_base_is_not_blamed_on_the_data(
    make_request: Callable[..., PrepareRequest], tmp_path: Path
) -> None:
    request = make_request(lines(*[ROW] * 10), base_directory=str(tmp_path / "missing"))
    (tmp_path / "request.json").write_text(request.model_dump_json())
    done = child(str(tmp_path / "request.json"))
    assert done.returncode == 1
    assert "tokenizer.json" in done.stderr
    assert not (tmp_path / "out" / REPORT_NAME).exists()


def test_the_limits_hold_in_the_child() -> None:
    code = (
        "import resource; from worker.contract.prepare import ProcessLimits; from worker.prepare import limit_process;"
        "limit_process(ProcessLimits(memory_bytes=3 << 30, cpu_seconds=9, file_bytes=1 << 20));"
        "print([resource.getrlimit(k) for k in "
        "(resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == str([(3 << 30,) * 2, (9, 10), (1 << 20,) * 2, (0, 0)])
    assert resource.getrlimit(resource.RLIMIT_CPU)[0] != 9


def test_no_torch_and_no_transformers_are_loaded() -> None:
    code = "import sys, worker.prepare; print([m for m in ('torch', 'transformers', 'sqlalchemy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
