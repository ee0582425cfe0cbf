"""The shapes of training data: what a line of a file may hold for each method, and the sentences that refuse it.

A row is validated here and kept as the dictionaries that were sent: chat templates print tools and
tool calls as JSON, so the order of their keys is part of the data.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

CHAT_KEYS = frozenset({"messages", "tools", "parallel_tool_calls", "functions"})
COMPLETION_KEYS = frozenset({"prompt", "completion"})
PREFERRED_KEYS = ("preferred_output", "preferred_completion")  # today's spelling and that of before 2025-07
NON_PREFERRED_KEYS = ("non_preferred_output", "non_preferred_completion")
MAX_ECHO_CHARS = 60


class Fault(StrEnum):
    ROW = "row"  # this line is wrong
    EXTRA_KEY = "extra_key"  # this line has a key that its format does not know
    METHOD = "method"  # the file suits another training method
    FILE = "file"  # the file as a whole; reading it further is of no use


class FormatError(Exception):
    """A line, or a file, that cannot be trained on. `field` is a path such as `messages[1].role`."""

    def __init__(self, what: str, *, field: str | None = None, where: str = "", fault: Fault = Fault.ROW) -> None:
        super().__init__(what)
        self.what = what
        self.field = field
        self.where = where
        self.fault = fault

    def sentence(self, line: int) -> str:
        """The refusal in OpenAI's words; examples are numbered by their line in the file."""
        if self.fault in (Fault.FILE, Fault.METHOD):
            return self.what
        return f"Example {line}, {self.where} {self.what}" if self.where else f"Example {line} {self.what}"


@dataclass(frozen=True, slots=True)
class ChatRow:
    """A conversation; assistant messages are trained on unless their weight is 0."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    functions: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class CompletionRow:
    """A text and its continuation, without a chat template; the continuation is trained on."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """A conversation and two answers of the assistant, of which the first is better. `keys` name them in the file."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    preferred: dict[str, Any]
    non_preferred: dict[str, Any]
    keys: tuple[str, str]


SupervisedRow = ChatRow | CompletionRow
METHODS = {"chat": "supervised", "completion": "supervised", "preference": "dpo", "reinforcement": "reinforcement"}


def parse_row(value: dict[str, Any]) -> SupervisedRow:
    """The supervised row in `value`; FormatError if it is none or belongs to another training method."""
    _require_method(value, "supervised")
    if value.keys() & COMPLETION_KEYS and not value.keys() & CHAT_KEYS:
        _validate(_CompletionShape, value)
        return CompletionRow(prompt=value["prompt"], completion=value["completion"])
    if not value.keys() & CHAT_KEYS:
        raise FormatError(
            "Unexpected file format, expected either prompt/completion pairs or chat messages.", fault=Fault.FILE
        )
    _validate(_ChatShape, value)
    if not any(message["role"] == "assistant" for message in value["messages"]):
        raise FormatError("has no message from the assistant", field="messages")
    return ChatRow(messages=value["messages"], tools=value.get("tools"), functions=value.get("functions"))


def parse_preference(value: dict[str, Any]) -> PreferenceRow:
    """The preference row in `value`; FormatError if it is none or belongs to another training method."""
    _require_method(value, "dpo")
    if not value.keys() & {"input", *PREFERRED_KEYS, *NON_PREFERRED_KEYS}:
        raise FormatError(
            "Unexpected file format, expected preference pairs: input, preferred_output and non_preferred_output.",
            fault=Fault.FILE,
        )
    preferred = next((key for key in PREFERRED_KEYS if key in value), PREFERRED_KEYS[0])
    non_preferred = next((key for key in NON_PREFERRED_KEYS if key in value), NON_PREFERRED_KEYS[0])
    _validate(_PREFERENCE_SHAPES[preferred, non_preferred], value)
    for key in (preferred, non_preferred):
        if value[key][0].get("weight") == 0:
            raise FormatError("has weight 0, but both answers are trained on", field=f"{key}[0].weight", where=key)
    return PreferenceRow(
        messages=value["input"]["messages"],
        tools=value["input"].get("tools"),
        preferred=value[preferred][0],
        non_preferred=value[non_preferred][0],
        keys=(preferred, non_preferred),
    )


def _require_method(value: dict[str, Any], method: str) -> None:
    found = detect_format(value)
    if found is not None and METHODS[found] != method:
        raise FormatError(
            f"Input file is in the fine-tune-{found} format, but the specified fine-tuning job is not using "
            f"'{METHODS[found]}' as the training method (provided method={method}).",
            fault=Fault.METHOD,
        )


def detect_format(value: dict[str, Any]) -> Literal["chat", "completion", "preference", "reinforcement"] | None:
    """Which kind of file a line seems to come from; its keys decide, the line need not be valid."""
    if "input" in value and any(key in value for key in PREFERRED_KEYS + NON_PREFERRED_KEYS):
        return "preference"
    messages = value.get("messages")
    if messages is not None:
        # Reinforcement rows end with the question and carry what the grader needs beside it.
        last = messages[-1] if isinstance(messages, list) and messages else None
        ends_with_question = isinstance(last, dict) and last.get("role") == "user"
        return "reinforcement" if ends_with_question and value.keys() - CHAT_KEYS else "chat"
    return "completion" if value.keys() & COMPLETION_KEYS else None


# The shapes, for validation only.


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _check_content(content: object) -> object:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise PydanticCustomError("content", "must be a string or a list of text parts")
    if not content:
        raise PydanticCustomError("content", "is an empty list")
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("image_url", "image_file", "input_image"):
            raise PydanticCustomError("content", "has an image part; images are not supported yet")
        if kind != "text":
            raise PydanticCustomError("content", 'has a part whose type is not "text"')
        if not isinstance(part.get("text"), str) or part.keys() - {"type", "text"}:
            raise PydanticCustomError("content", 'has a text part that is not {{"type": "text", "text": "..."}}')
    return content


def _is_empty(content: object) -> bool:
    """Whether content that was checked holds no text at all."""
    return content == "" or (isinstance(content, list) and not any(part["text"] for part in content))


def _require_content(content: object) -> object:
    if content is None:
        raise PydanticCustomError("content", "may not be null")
    return _check_content(content)


Content = Annotated[Any, BeforeValidator(_require_content)]


class _System(_Shape):
    role: Literal["system"]
    content: Content
    name: str | None = None


class _Developer(_Shape):
    role: Literal["developer"]
    content: Content
    name: str | None = None


class _User(_Shape):
    role: Literal["user"]
    content: Content
    name: str | None = None


class _Tool(_Shape):
    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = None


class _FunctionResult(_Shape):
    role: Literal["function"]
    content: Annotated[Any, BeforeValidator(_check_content)]
    name: str


class _Call(_Shape):
    name: str = Field(min_length=1)
    # OpenAI sends a JSON string; the object itself, as Hugging Face data has it, means the same.
    arguments: str | dict[str, Any]


class _ToolCall(_Shape):
    id: str
    type: Literal["function"]
    function: _Call


class _Assistant(_Shape):
    role: Literal["assistant"]
    content: Annotated[Any, BeforeValidator(_check_content)] = None
    name: str | None = None
    refusal: str | None = None
    weight: Annotated[int, Field(ge=0, le=1)] | None = None
    tool_calls: Annotated[list[_ToolCall], Field(min_length=1)] | None = None
    function_call: _Call | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "_Assistant":
        if self.content is None and self.tool_calls is None and self.function_call is None:
            raise PydanticCustomError("content", "has neither content nor tool_calls nor function_call")
        if self.weight != 0 and _is_empty(self.content) and self.tool_calls is None and self.function_call is None:
            raise PydanticCustomError("content", "has an empty answer: give it text, or a weight of 0")
        if self.tool_calls is not None and self.function_call is not None:
            raise PydanticCustomError("content", "has both tool_calls and the older function_call")
        return self


class _Function(_Shape):
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _ToolDefinition(_Shape):
    type: Literal["function"]
    function: _Function


Message = Annotated[
    _System | _Developer | _User | _Assistant | _Tool | _FunctionResult,
    Field(discriminator="role"),
]


class _ChatShape(_Shape):
    messages: list[Message] = Field(min_length=1)
    tools: list[_ToolDefinition] | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[_Function], Field(min_length=1, max_length=128)] | None = None

    @model_validator(mode="after")
    def _one_kind_of_tools(self) -> "_ChatShape":
        if self.tools and self.functions:
            raise PydanticCustomError("tools", "has both tools and the older functions")
        return self


class _CompletionShape(_Shape):
    prompt: str
    completion: str = Field(min_length=1)


class _PreferenceInput(_Shape):
    messages: list[Message] = Field(min_length=1)
    tools: list[_ToolDefinition] | None = None
    parallel_tool_calls: bool | None = None


_Answer = Annotated[list[_Assistant], Field(min_length=1, max_length=1)]


def _preference_shape(preferred: str, non_preferred: str) -> type[_Shape]:
    fields: dict[str, Any] = {"input": (_PreferenceInput, ...)}
    fields |= {preferred: (_Answer, ...), non_preferred: (_Answer, ...)}
    return create_model("_PreferenceShape", __base__=_Shape, **fields)


# One for each spelling, so that errors name the keys that the file has, and any other key is one too many.
_PREFERENCE_SHAPES = {
    (preferred, non_preferred): _preference_shape(preferred, non_preferred)
    for preferred in PREFERRED_KEYS
    for non_preferred in NON_PREFERRED_KEYS
}


def _validate(shape: type[_Shape], value: dict[str, Any]) -> None:
    try:
        shape.model_validate(value)
    except ValidationError as error:
        raise _format_error(error.errors(include_url=False)[0]) from None


def _format_error(error: ErrorDetails) -> FormatError:
    """The first finding of pydantic in the words that OpenAI's service uses for it."""
    location = list(error["loc"])
    where = ""
    if len(location) > 1 and location[0] in PREFERRED_KEYS + NON_PREFERRED_KEYS:
        where = str(location[0])
    elif "messages" in location[:-1]:
        index = location.index("messages") + 1
        where = f"message {int(location[index]) + 1}"
        # the role, by which pydantic says which branch of the union it took
        del location[index + 1 : index + 2]
    kind, context = error["type"], error.get("ctx", {})
    fault = Fault.ROW
    if kind == "extra_forbidden":
        fault = Fault.EXTRA_KEY
        what = f'contains an extra "{_short(location[-1])}".'
    elif kind == "missing":
        what = f"is missing key '{location[-1]}'"
    elif kind == "union_tag_not_found":
        what = "Discriminator 'role' is missing in value"
    elif kind == "union_tag_invalid":
        what = (
            f"No match for discriminator 'role' and value '{_short(context['tag'])}' "
            f"(allowed values: {context['expected_tags']})"
        )
    elif kind in ("content", "tools"):
        what = f"'{location[-1]}' {error['msg']}" if location[-1:] == ["content"] else error["msg"]
    else:
        last = next((part for part in reversed(location) if isinstance(part, str)), "")
        what = f"'{last}': {error['msg'][:1].lower()}{error['msg'][1:]}"
    return FormatError(what, field=_path(location), where=where, fault=fault)


def _path(location: list[int | str]) -> str | None:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{_short(part)}" for part in location)
    return path.removeprefix(".") or None


def _short(text: object) -> str:
    """Text of a user's file for a message: short and printable."""
    shown = "".join(character if character.isprintable() else "?" for character in str(text)[:MAX_ECHO_CHARS])
    return shown + "..." if len(str(text)) > MAX_ECHO_CHARS else shown
