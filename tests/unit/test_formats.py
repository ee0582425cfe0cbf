from typing import Any

import pytest

from worker.contract.formats import ChatRow, CompletionRow, Fault, FormatError, detect_format, parse_row

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def chat(*messages: Any, **keys: Any) -> dict[str, Any]:
    return {"messages": list(messages), **keys}


def refusal(value: dict[str, Any]) -> FormatError:
    with pytest.raises(FormatError) as caught:
        parse_row(value)
    return caught.value


@pytest.mark.parametrize(
    "value",
    [
        chat(USER, ANSWER),
        chat({"role": "system", "content": "S"}, {"role": "developer", "content": "D", "name": "n"}, USER, ANSWER),
        chat({"role": "user", "content": [{"type": "text", "text": "a"}], "name": "n"}, ANSWER),
        chat(USER, {**ANSWER, "weight": 0, "refusal": None, "name": "n"}, USER, {**ANSWER, "weight": 1}),
        chat(USER, {"role": "assistant", "tool_calls": [CALL]}, tools=[TOOL], parallel_tool_calls=False),
        chat(USER, {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]}, tools=[]),
        chat(USER, ANSWER, {"role": "tool", "content": "x", "tool_call_id": "call_1"}, ANSWER),
        chat(USER, {"role": "assistant", "function_call": {"name": "f", "arguments": "not json"}}),
        chat(USER, ANSWER, {"role": "function", "name": "f", "content": None}, functions=[{"name": "f"}]),
        chat(USER, {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {"a": 1}}}]}),
        chat(USER, {"role": "assistant", "content": "\x00"}),
        chat(USER, {"role": "assistant", "content": "", "weight": 0}, ANSWER),
        chat(USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}),
    ],
)
def test_chat_rows_are_kept_as_they_were_sent(value: dict[str, Any]) -> None:
    row = parse_row(value)
    assert isinstance(row, ChatRow)
    assert row.messages is value["messages"]
    assert row.tools is value.get("tools")


def test_prompt_and_completion() -> None:
    assert parse_row({"prompt": "a", "completion": " b"}) == CompletionRow("a", " b")


BAD = [
    ({}, "Unexpected file format, expected either prompt/completion pairs or chat messages.", None),
    ({"text": "a"}, "Unexpected file format, expected either prompt/completion pairs or chat messages.", None),
    ({"tools": []}, "Example 7 is missing key 'messages'", "messages"),
    ({"prompt": "a"}, "Example 7 is missing key 'completion'", "completion"),
    ({"prompt": 1, "completion": "a"}, "Example 7 'prompt': input should be a valid string", "prompt"),
    ({"prompt": "a", "completion": "b", "id": 1}, 'Example 7 contains an extra "id".', "id"),
    (chat(USER, ANSWER, weight=1), 'Example 7 contains an extra "weight".', "weight"),
    (chat(USER, ANSWER, **{"x" * 99: 1}), f'Example 7 contains an extra "{"x" * 60}...".', "x" * 60 + "..."),
    (chat(), "Example 7 'messages': list should have at least 1 item", "messages"),
    ({"messages": "Hi"}, "Example 7 'messages': input should be a valid list", "messages"),
    ({"messages": None}, "Example 7 'messages': input should be a valid list", "messages"),
    (chat("Hi"), "Example 7, message 1 ", "messages[0]"),
    (chat(USER, {"content": "a"}), "Example 7, message 2 Discriminator 'role' is missing in value", "messages[1]"),
    (
        chat(USER, {"role": "bot", "content": "a"}),
        "Example 7, message 2 No match for discriminator 'role' and value 'bot' (allowed values: 'system', 'developer'",
        "messages[1]",
    ),
    (chat(USER), "Example 7 has no message from the assistant", "messages"),
    (chat({"role": "user"}, ANSWER), "Example 7, message 1 is missing key 'content'", "messages[0].content"),
    (chat({**USER, "content": 5}, ANSWER), "Example 7, message 1 'content' must be a string", "messages[0].content"),
    (chat({**USER, "content": None}, ANSWER), "Example 7, message 1 'content' may not be null", "messages[0].content"),
    (chat({**USER, "content": []}, ANSWER), "Example 7, message 1 'content' is an empty list", "messages[0].content"),
    (
        chat({**USER, "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}, ANSWER),
        "Example 7, message 1 'content' has an image part; images are not supported yet",
        "messages[0].content",
    ),
    (
        chat({**USER, "content": [{"type": "text", "text": 1}]}, ANSWER),
        "Example 7, message 1 'content' has a text part that is not",
        "messages[0].content",
    ),
    (chat({**USER, "content": ["a"]}, ANSWER), "Example 7, message 1 'content' has a part", "messages[0].content"),
    (chat({**USER, "mood": 1}, ANSWER), 'Example 7, message 1 contains an extra "mood".', "messages[0].mood"),
    (chat(USER, {"role": "assistant"}), "Example 7, message 2 has neither content nor tool_calls", "messages[1]"),
    (chat(USER, {**ANSWER, "content": None}), "Example 7, message 2 has neither content", "messages[1]"),
    (chat(USER, {**ANSWER, "weight": 0.5}), "Example 7, message 2 'weight': input should be a valid integer", None),
    (chat(USER, {**ANSWER, "weight": True}), "Example 7, message 2 'weight': input should be a valid integer", None),
    (chat(USER, {**ANSWER, "weight": 2}), "Example 7, message 2 'weight': input should be less than or equal", None),
    (chat(USER, {**ANSWER, "tool_calls": []}), "Example 7, message 2 'tool_calls': list should have", None),
    (
        chat(USER, {**ANSWER, "tool_calls": [{**CALL, "function": {"name": "f"}}]}),
        "Example 7, message 2 is missing key 'arguments'",
        "messages[1].tool_calls[0].function.arguments",
    ),
    (chat(USER, {"role": "tool", "content": "a"}, ANSWER), "Example 7, message 2 is missing key 'tool_call_id'", None),
    (chat(USER, ANSWER, tools=[{"type": "function"}]), "Example 7 is missing key 'function'", "tools[0].function"),
    (chat(USER, ANSWER, functions=[]), "Example 7 'functions': list should have at least 1 item", "functions"),
    (chat(USER, ANSWER, functions=[{"name": "f"}] * 129), "Example 7 'functions': list should have at most 128", None),
    (chat(USER, ANSWER, functions=[{"name": "f"}], tools=[TOOL]), "Example 7 has both tools and", None),
]


@pytest.mark.parametrize(("value", "sentence", "field"), BAD)
def test_refusals_name_the_place_and_the_reason(value: dict[str, Any], sentence: str, field: str | None) -> None:
    error = refusal(value)
    assert error.sentence(7).startswith(sentence)
    if field is not None:
        assert error.field == field


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({"input": {}, "preferred_output": [], "non_preferred_output": []}, "preference"),
        ({"input": {}, "preferred_completion": [], "non_preferred_completion": []}, "preference"),
        (chat(USER, answer="42"), "reinforcement"),
        (chat(USER), "chat"),
        (chat(USER, ANSWER, extra=1), "chat"),
        ({"prompt": "a"}, "completion"),
        ({"input": "a"}, None),
    ],
)
def test_formats_are_recognised_by_their_keys(value: dict[str, Any], name: str | None) -> None:
    assert detect_format(value) == name


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (
            {"input": {}, "preferred_output": [], "non_preferred_output": []},
            "Input file is in the fine-tune-preference format, but the specified fine-tuning job is not using 'dpo' "
            "as the training method (provided method=supervised).",
        ),
        (
            chat(USER, answer="42"),
            "Input file is in the fine-tune-reinforcement format, but the specified fine-tuning job is not using "
            "'reinforcement' as the training method (provided method=supervised).",
        ),
    ],
)
def test_files_for_another_method_are_told_so(value: dict[str, Any], sentence: str) -> None:
    error = refusal(value)
    assert (error.fault, error.sentence(3)) == (Fault.METHOD, sentence)


def test_an_extra_key_has_a_code_of_its_own() -> None:
    assert refusal(chat(USER, ANSWER, weight=1)).fault is Fault.EXTRA_KEY
