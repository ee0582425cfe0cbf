"""Chat templates of Hugging Face model directories, rendered as transformers renders them.

Templates come with a base model and are code from elsewhere: they run in jinja's sandbox, and should
run in a process with limits, since the sandbox stops neither endless loops nor huge strings.
"""

import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_SENTENCE_CHARS = 300
MARKS_VARIABLE = "hone_generation_marks"
# Pairs of private-use characters; the first pair that a rendering does not hold marks its spans.
MARK_PAIRS = tuple((chr(0xF0000 + 2 * i), chr(0xF0001 + 2 * i)) for i in range(64))
TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

Span = tuple[int, int]  # of characters, half open
Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None


class TemplateError(Exception):
    """The template refuses a conversation or fails on it; the message is the template's own sentence."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """A conversation as text; `generated` are the spans of `{% generation %}` blocks, in order."""

    text: str
    generated: list[Span]


def load_template(directory: str | Path, rendering_date: datetime.date) -> "ChatTemplate | None":
    """The chat template of a model directory, or None if it has none.

    Looked for in chat_template.jinja (and additional_chat_templates/), tokenizer_config.json and
    chat_template.json, in this order. TemplateError if a template or its file cannot be read.
    """
    directory = Path(directory)
    config = _read_json(directory / "tokenizer_config.json")
    sources = _template_files(directory)
    if not sources:
        found = config.get("chat_template") or _read_json(directory / "chat_template.json").get("chat_template")
        sources = _named(found) if found else {}
    source = sources.get("default", sources.get("tool_use"))
    if source is None:
        return None
    return ChatTemplate(
        source,
        tool_source=sources.get("tool_use"),
        special_tokens=special_tokens(directory),
        rendering_date=rendering_date,
    )


def special_tokens(directory: str | Path) -> dict[str, str]:
    """The named special tokens of a model directory: {"bos_token": "<s>", ...}, absent ones left out."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        config = _read_json(Path(directory) / name)
        for token_name in TOKEN_NAMES:
            value = config.get(token_name)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                found[token_name] = text
            elif token_name in config:
                found.pop(token_name, None)  # null in the configuration: the model has none
    return found


class ChatTemplate:
    """One compiled template, or two where a directory has another one for conversations with tools."""

    def __init__(
        self,
        source: str,
        *,
        special_tokens: Mapping[str, str],
        rendering_date: datetime.date,
        tool_source: str | None = None,
    ) -> None:
        environment = _environment(rendering_date)
        self._special_tokens = dict(special_tokens)
        self._sources = (source, tool_source or source)
        try:
            self._templates = tuple(environment.from_string(text) for text in self._sources)
        except Exception as error:  # also what Python says of deep nesting, huge numbers and what jinja made of it
            raise TemplateError(_shortened(f"the chat template does not compile: {error}")) from error

    def source(self, tools: Tools) -> str:
        """The source of the template that a conversation with these tools is rendered by."""
        return self._sources[1 if tools else 0]

    def has_generation_blocks(self, tools: Tools) -> bool:
        return re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", self.source(tools)) is not None

    def render(self, messages: Messages, tools: Tools = None, *, add_generation_prompt: bool = False) -> str:
        """The conversation as text; TemplateError if the template refuses it or fails."""
        return self._render(messages, tools, add_generation_prompt=add_generation_prompt, marks=None)

    def render_marked(self, messages: Messages, tools: Tools = None) -> Rendering:
        """The conversation as text with the spans that the template marks as the model's own."""
        text = self.render(messages, tools)
        if not self.has_generation_blocks(tools):
            return Rendering(text, [])
        marks = unused_marks(text)
        marked = self._render(messages, tools, add_generation_prompt=False, marks=marks)
        unmarked, spans = take_marks(marked, marks)
        if unmarked != text:
            raise TemplateError("the chat template changes the text of its generation blocks")
        return Rendering(text, spans)

    def _render(
        self, messages: Messages, tools: Tools, *, add_generation_prompt: bool, marks: tuple[str, str] | None
    ) -> str:
        variables: dict[str, Any] = {**self._special_tokens}
        if marks is not None:
            variables[MARKS_VARIABLE] = marks
        try:
            return self._templates[1 if tools else 0].render(
                variables,
                messages=messages,
                tools=tools or None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
            )
        except jinja2.TemplateError as error:
            raise TemplateError(_shortened(error.message or type(error).__name__)) from error
        except Exception as error:  # a template is code: it can raise whatever Python can
            raise TemplateError(_shortened(f"{type(error).__name__}: {error}")) from error


def unused_marks(text: str) -> tuple[str, str]:
    """Two characters that are not in `text`."""
    for pair in MARK_PAIRS:
        if pair[0] not in text and pair[1] not in text:
            return pair
    raise TemplateError("the conversation uses every private-use character that could mark its parts")


def take_marks(marked: str, marks: tuple[str, str]) -> tuple[str, list[Span]]:
    """Text without its marks, and the spans that they enclosed; an inner span counts to the outer one.

    TemplateError if they do not pair.
    """
    opening, closing = marks
    pieces: list[str] = []
    spans: list[Span] = []
    length = depth = start = 0
    for piece in re.split(f"([{re.escape(opening + closing)}])", marked):
        if piece == opening:
            start = length if depth == 0 else start
            depth += 1
        elif piece == closing:
            depth -= 1
            if depth < 0:
                break
            if depth == 0:
                spans.append((start, length))
        else:
            pieces.append(piece)
            length += len(piece)
    if depth != 0:
        raise TemplateError("the chat template takes marked text apart")
    return "".join(pieces), spans


def _template_files(directory: Path) -> dict[str, str]:
    sources: dict[str, str] = {}
    try:
        for path in sorted(directory.glob("additional_chat_templates/*.jinja")):
            sources[path.stem] = path.read_text(encoding="utf-8")
        if (directory / "chat_template.jinja").is_file():
            sources["default"] = (directory / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"the chat template cannot be read: {error}") from error
    return sources


def _named(found: object) -> dict[str, str]:
    """Templates by name, from one string or a list of {"name": ..., "template": ...}."""
    if isinstance(found, str):
        return {"default": found}
    if isinstance(found, list):
        try:
            return {str(entry["name"]): str(entry["template"]) for entry in found}
        except (KeyError, TypeError) as error:
            raise TemplateError("the list of chat templates has an entry without name or template") from error
    raise TemplateError("the chat template is neither a string nor a list of named templates")


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty if there is no such file."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise TemplateError(f"{path.name} cannot be read: {error}") from error
    return value if isinstance(value, dict) else {}


def _environment(rendering_date: datetime.date) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationBlock]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _clock(rendering_date)
    environment.globals["namespace"] = _PublicNamespace
    environment.globals["dict"] = _DictMaker()
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja's own filter escapes <, > and & for HTML; templates are written for plain JSON.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _clock(rendering_date: datetime.date) -> Callable[[str], str]:
    # Midnight of a given day: the same file must render to the same tokens tomorrow.
    moment = datetime.datetime.combine(rendering_date, datetime.time())
    return moment.strftime


class _DictMaker:
    """`dict(...)` for templates, without the attributes of the type itself."""

    def __call__(self, *arguments: Any, **items: Any) -> dict[Any, Any]:
        return dict(*arguments, **items)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _PublicNamespace(Namespace):
    """`namespace(...)` for templates; underscored names could reach into the interpreter."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.TemplateError(f"a namespace may not hold {name!r}")
        super().__setitem__(name, value)


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}`: text that the model is to write, marked if marks are given."""

    tags = {"generation"}  # noqa: RUF012 - the attribute is jinja's

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_enclose", [nodes.ContextReference()])
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _enclose(self, context: Context, caller: Callable[[], str]) -> str:
        opening, closing = context.get(MARKS_VARIABLE) or ("", "")
        return opening + caller() + closing


def _shortened(sentence: str) -> str:
    return sentence if len(sentence) <= MAX_SENTENCE_CHARS else sentence[:MAX_SENTENCE_CHARS] + "..."
