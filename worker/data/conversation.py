"""From a chat row as OpenAI has it to a conversation as Hugging Face chat templates expect it."""

from dataclasses import dataclass
from typing import Any

from worker.contract.formats import ChatRow, FormatError
from worker.data.rows import parse_object
from worker.data.template import ChatTemplate


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages and tools for a template; `weights` is per message, 0 for all but assistant messages."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    weights: list[float]


def to_conversation(row: ChatRow, template: ChatTemplate) -> Conversation:
    """The row in the template's terms; FormatError if the template would drop a part of it silently.

    - Keys that are null are left out, as transformers does; text parts become one string.
    - Arguments of calls become objects where they are JSON objects, else they stay strings.
    - `functions`, `function_call` and the role function become tools, tool calls and the role tool.
    - The role developer becomes system unless the template's source mentions developer.
    """
    tools = row.tools or [{"type": "function", "function": function} for function in row.functions or []] or None
    source = template.source(tools)
    has_developer = "developer" in source
    messages = [_message(message, has_developer) for message in row.messages]
    _name_calls(messages)
    if tools and "tools" not in source:
        raise FormatError("has tools, but the base model's chat template does not show tools to the model")
    for index, message in enumerate(messages):
        if "tool_calls" in message and "tool_calls" not in source:
            raise FormatError(
                "has tool calls, but the base model's chat template does not render tool calls",
                field=f"messages[{index}].tool_calls",
                where=f"message {index + 1}",
            )
    return Conversation(messages, tools, [_weight(message) for message in row.messages])


def keep_last_turn(conversation: Conversation) -> None:
    """Leave weight to nothing but the last assistant message, and to that what its row gives it."""
    weights, roles = conversation.weights, [message["role"] for message in conversation.messages]
    last = len(roles) - 1 - roles[::-1].index("assistant")  # a row without one was refused when it was parsed
    weights[:last] = [0.0] * last


def _weight(message: dict[str, Any]) -> float:
    if message["role"] != "assistant":
        return 0.0
    weight = message.get("weight")
    return 1.0 if weight is None else float(weight)


def _message(message: dict[str, Any], has_developer: bool) -> dict[str, Any]:
    kept = {key: value for key, value in message.items() if value is not None and key != "weight"}
    if kept["role"] == "developer" and not has_developer:
        kept["role"] = "system"
    if isinstance(kept.get("content"), list):
        kept["content"] = "".join(part["text"] for part in kept["content"])
    if "function_call" in kept:
        kept["tool_calls"] = [{"type": "function", "function": kept.pop("function_call")}]
    if kept["role"] == "function":
        kept["role"] = "tool"
        kept.setdefault("content", "")
    if "tool_calls" in kept:
        kept["tool_calls"] = [{**call, "function": _with_object(call["function"])} for call in kept["tool_calls"]]
    return kept


def _name_calls(messages: list[dict[str, Any]]) -> None:
    """Give calls of the older format ids, and their results the id of the call before."""
    latest = "call00000"  # nine letters and digits, which is all that Mistral's templates let pass
    for number, message in enumerate(messages):
        if message["role"] == "tool":
            message.setdefault("tool_call_id", latest)
        for call in message.get("tool_calls", ()):
            latest = call.setdefault("id", f"call{number:05d}")


def _with_object(function: dict[str, Any]) -> dict[str, Any]:
    arguments = function["arguments"]
    if not isinstance(arguments, str):
        return function
    try:
        return {**function, "arguments": parse_object(arguments.encode())}
    except FormatError:
        return function  # not a JSON object, or not an unambiguous one: the text itself is what was called
