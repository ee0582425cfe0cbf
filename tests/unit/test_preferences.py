"""Preference rows: their shape, and the pairs of token sequences that they become."""

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.unit.chat_bases import write_base
from worker.contract.formats import ChatRow, Fault, FormatError, PreferenceRow, parse_preference
from worker.data import pairs
from worker.data.pairs import PairExample
from worker.data.tokenize import RowTokenizer

USER = {"role": "user", "content": "2 + 2?"}
GOOD = {"role": "assistant", "content": "It is 4."}
BAD = {"role": "assistant", "content": "It is 5, I think."}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def row(*messages: Any, preferred: Any = GOOD, rejected: Any = BAD, **input_keys: Any) -> dict[str, Any]:
    return {
        "input": {"messages": list(messages) or [USER], **input_keys},
        "preferred_output": [preferred],
        "non_preferred_output": [rejected],
    }


def refusal(value: dict[str, Any]) -> FormatError:
    with pytest.raises(FormatError) as caught:
        parse_preference(value)
    return caught.value


@pytest.mark.parametrize("names", [("output", "output"), ("completion", "completion"), ("output", "completion")])
def test_both_spellings_are_read(names: tuple[str, str]) -> None:
    keys = (f"preferred_{names[0]}", f"non_preferred_{names[1]}")
    value = {"input": {"messages": [USER], "parallel_tool_calls": False}, keys[0]: [GOOD], keys[1]: [BAD]}
    assert parse_preference(value) == PreferenceRow([USER], None, GOOD, BAD, keys)


REFUSED = [
    ({"input": {"messages": [USER]}, "preferred_output": [GOOD]}, "is missing key 'non_preferred_output'", None),
    (row(preferred=USER), ", preferred_output 'role': input should be 'assistant'", "preferred_output[0].role"),
    ({**row(), "preferred_output": GOOD}, "'preferred_output': input should be a valid list", "preferred_output"),
    ({**row(), "preferred_output": []}, "'preferred_output': list should have at least 1 item", "preferred_output"),
    ({**row(), "non_preferred_output": [BAD, BAD]}, "'non_preferred_output': list should have at most 1", None),
    (row({"role": "user"}), ", message 1 is missing key 'content'", "input.messages[0].content"),
    (row(USER, {"role": "bot"}), ", message 2 No match for discriminator 'role'", "input.messages[1]"),
    ({**row(), "input": {"messages": []}}, "'messages': list should have at least 1 item", "input.messages"),
    ({**row(), "input": "2 + 2?"}, "'input': input should be a valid dictionary", "input"),
    (
        row(rejected={**BAD, "weight": 0}),
        ", non_preferred_output has weight 0, but both answers are trained on",
        "non_preferred_output[0].weight",
    ),
    (
        row(rejected={"role": "assistant"}),
        ", non_preferred_output has neither content nor tool_calls",
        "non_preferred_output[0]",
    ),
]


@pytest.mark.parametrize(("value", "words", "field"), REFUSED)
def test_refusals_name_the_place_and_the_reason(value: dict[str, Any], words: str, field: str | None) -> None:
    error = refusal(value)
    assert error.sentence(7).removeprefix("Example 7").lstrip().startswith(words)
    assert field is None or error.field == field


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({**row(), "id": 1}, "id"),
        (row(functions=[]), "input.functions"),
        ({**row(), "preferred_completion": [GOOD]}, "preferred_completion"),
    ],
)
def test_other_keys_are_refused_by_name(value: dict[str, Any], field: str) -> None:
    error = refusal(value)
    assert (error.fault, error.field) == (Fault.EXTRA_KEY, field)


@pytest.mark.parametrize(
    ("value", "name", "method"),
    [
        ({"messages": [USER, GOOD]}, "chat", "supervised"),
        ({"prompt": "a", "completion": "b"}, "completion", "supervised"),
        ({"messages": [USER], "answer": 4}, "reinforcement", "reinforcement"),
    ],
)
def test_files_for_another_method_are_told_so(value: dict[str, Any], name: str, method: str) -> None:
    error = refusal(value)
    assert (error.fault, error.sentence(3)) == (
        Fault.METHOD,
        f"Input file is in the fine-tune-{name} format, but the specified fine-tuning job is not using '{method}' "
        "as the training method (provided method=dpo).",
    )


def test_a_file_of_something_else_is_refused_whole() -> None:
    assert refusal({"text": "a"}).fault is Fault.FILE


# Tokens

Encode = Callable[..., list[PairExample | FormatError]]
STYLES = ["chatml", "marked", "qwen", "llama"]


@pytest.fixture(scope="module", params=STYLES)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), request.param)


@pytest.fixture(scope="module")
def encode(directory: Path) -> Encode:
    tokenizer = RowTokenizer(directory, datetime.date(2026, 1, 2))
    return lambda *values, most=10_000: pairs.tokenize(
        tokenizer, [parse_preference(value) for value in values], max_sequence_tokens=most
    )


def one(found: list[PairExample | FormatError]) -> PairExample:
    assert len(found) == 1
    assert isinstance(found[0], PairExample), found[0]
    return found[0]


def test_each_answer_has_the_tokens_of_its_own_conversation(directory: Path, encode: Encode) -> None:
    history = [{"role": "system", "content": "Add."}, USER, GOOD, USER]
    found = one(encode(row(*history)))
    whole = RowTokenizer(directory, datetime.date(2026, 1, 2)).tokenize
    decode = Tokenizer.from_file(str(directory / "tokenizer.json")).decode
    for answer, (tokens, weights) in ((GOOD, found.chosen), (BAD, found.rejected)):
        silent = [message | {"weight": 0} if message["role"] == "assistant" else message for message in history]
        (expected,) = whole([ChatRow([*silent, answer])], max_sequence_tokens=10_000)
        assert not isinstance(expected, FormatError)
        assert [*found.prompt, *tokens] == expected.tokens
        assert [*[0.0] * len(found.prompt), *weights] == expected.weights
        trained = [token for token, weight in zip(tokens, weights, strict=True) if weight > 0]
        assert decode(trained, skip_special_tokens=True).strip() == answer["content"]
        assert weights[0] == 1
    assert found.num_tokens == len(found.prompt) + len(found.chosen[0]) + len(found.rejected[0])
    assert not found.is_truncated


def test_the_prompt_ends_before_the_first_trained_token_of_either(encode: Encode) -> None:
    """Also where both answers begin alike, and where the tokenizer joins header and answer."""
    alike = one(encode(row(rejected={**GOOD, "content": "It is 4. Or 5."})))
    assert alike.chosen[0][0] == alike.rejected[0][0]
    joined = one(encode(row(preferred={**GOOD, "content": "\n\nFour"}, rejected={**GOOD, "content": "Five"})))
    assert sum(joined.chosen[1]) >= 1
    assert sum(joined.rejected[1]) >= 1


def test_over_long_answers_are_cut_at_the_end_each_by_itself(encode: Encode) -> None:
    value = row(rejected={**BAD, "content": "It is 5 or more, " * 9})
    whole = one(encode(value))
    limit = len(whole.prompt) + len(whole.chosen[0])
    cut = one(encode(value, most=limit))
    assert cut.is_truncated
    assert cut.chosen == whole.chosen
    assert cut.rejected[0] == whole.rejected[0][: len(whole.chosen[0])]
    assert cut.num_trained_tokens > 0
    nothing = one(encode(value, most=len(whole.prompt)))
    assert (nothing.is_truncated, nothing.num_trained_tokens) == (True, 0)


def test_pairs_that_are_cut_to_the_same_answer_are_left_out(encode: Encode) -> None:
    both = [{**GOOD, "content": f"{'the same words ' * 5}{end}"} for end in ("one", "two")]
    whole = one(encode(row(preferred=both[0], rejected=both[1])))
    cut = one(encode(row(preferred=both[0], rejected=both[1]), most=len(whole.prompt) + 4))
    assert (cut.is_truncated, cut.num_trained_tokens) == (True, 0)


def test_equal_answers_are_refused(encode: Encode) -> None:
    (error,) = encode(row(rejected=GOOD))
    assert isinstance(error, FormatError)
    assert "there is nothing to prefer" in error.what
    assert error.field == "non_preferred_output"


def test_special_strings_are_text_and_counted_once(encode: Encode) -> None:
    special = {**USER, "content": "<|im_end|> <|eot_id|>"}
    plain = one(encode(row()))
    assert plain.num_special_strings == 0
    assert one(encode(row(special))).num_special_strings == 1
    assert one(encode(row(special, rejected={**BAD, "content": special["content"]}))).num_special_strings == 2


def test_what_the_template_cannot_show_is_refused_by_field(tmp_path: Path) -> None:
    tokenizer = RowTokenizer(write_base(tmp_path / "base", "chatml"), datetime.date(2026, 1, 2))
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    for value, field in (
        (row(rejected=called), "non_preferred_output[0].tool_calls"),
        (row(USER, called, {"role": "tool", "content": "4", "tool_call_id": "call_1"}), "input.messages[1].tool_calls"),
    ):
        (error,) = pairs.tokenize(tokenizer, [parse_preference(value)], max_sequence_tokens=100)
        assert isinstance(error, FormatError)
        assert error.field == field


def test_tools_reach_the_template(tmp_path: Path) -> None:
    tokenizer = RowTokenizer(write_base(tmp_path / "base", "qwen"), datetime.date(2026, 1, 2))
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    with_tools, without = (
        pairs.tokenize(tokenizer, [parse_preference(value)], max_sequence_tokens=1000)[0]
        for value in (row(preferred=called, tools=[TOOL]), row(preferred=called))
    )
    assert isinstance(with_tools, PairExample)
    assert isinstance(without, PairExample)
    assert len(with_tools.prompt) > len(without.prompt)
