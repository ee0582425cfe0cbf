"""Asking a model for a score or a label: the chat completion that is sent, and what is believed of the answer.

The answer's form is asked for as a JSON schema. Servers that do not know schemas ignore it, so an answer that is
just the number, or just the label, counts as well.
"""

import math
from dataclasses import dataclass
from typing import Any

import orjson

from worker.contract.graders import AudioPart, Content, ImagePart, LabelModel, SamplingParams, ScoreModel, TextPart
from worker.graders.faults import Flag, GraderFault
from worker.graders.outcome import Usage
from worker.graders.templates import Context, fill

_QUOTED_CHARACTERS = 200
_DEFAULT_RANGE = (0.0, 1.0)
_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


@dataclass(frozen=True)
class ModelAnswer:
    """`model` is what the server says has answered. With a fault the reward is 0, and the tokens count all the same."""

    reward: float
    model: str
    usage: Usage
    fault: GraderFault | None = None


def request(grader: ScoreModel | LabelModel, context: Context) -> dict[str, Any]:
    """The body of a chat completion. Raises GraderFault for variables that cannot be filled in."""
    body: dict[str, Any] = {
        "model": grader.model,
        "messages": [{"role": one.role, "content": _content(one.content, context)} for one in grader.input],
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "grade",
                "strict": True,
                "schema": {
                    "type": "object",
                    "properties": {"result": _result_schema(grader)},
                    "required": ["result"],
                    "additionalProperties": False,
                },
            },
        },
    }
    if isinstance(grader, ScoreModel):
        body |= _sampling(grader.sampling_params or SamplingParams())
    return body


def read(grader: ScoreModel | LabelModel, status: int, raw: bytes) -> ModelAnswer:
    """Raises GraderFault for what is no answer of a model at all."""
    if status != 200:
        sentence = f"The model's server answered with status {status}: {_quote(raw.decode('utf-8', 'replace'))}"
        raise GraderFault(sentence, "model_grader_server_error")
    try:
        answer = orjson.loads(raw)
        choice = answer["choices"][0]
        message = choice["message"]
        text = message.get("content")
        refusal = message.get("refusal")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        sentence = "The model's server answered with something that is no chat completion."
        raise GraderFault(sentence, "model_grader_server_error") from error
    model = answer["model"] if isinstance(answer.get("model"), str) else grader.model
    usage = _usage(answer.get("usage"))
    if refusal or choice.get("finish_reason") == "content_filter":
        fault = GraderFault(f"The model refused: {_quote(str(refusal or text))}", "model_grader_refusal_error")
        return ModelAnswer(0.0, model, usage, fault)
    try:
        return ModelAnswer(_reward(grader, text, choice.get("finish_reason") == "length"), model, usage)
    except GraderFault as fault:
        return ModelAnswer(0.0, model, usage, fault)


def _content(content: Content, context: Context) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return fill(content, context)
    parts = content if isinstance(content, list) else [content]
    return [_part(part, context) for part in parts]


def _part(part: str | TextPart | ImagePart | AudioPart, context: Context) -> dict[str, Any]:
    if isinstance(part, ImagePart):
        url = {"url": fill(part.image_url, context), "detail": part.detail or "auto"}
        return {"type": "image_url", "image_url": url}
    if isinstance(part, AudioPart):
        audio = {"data": fill(part.input_audio.data, context), "format": part.input_audio.format}
        return {"type": "input_audio", "input_audio": audio}
    return {"type": "text", "text": fill(part if isinstance(part, str) else part.text, context)}


def _result_schema(grader: ScoreModel | LabelModel) -> dict[str, Any]:
    if isinstance(grader, LabelModel):
        return {"type": "string", "enum": grader.labels}
    low, high = grader.range or _DEFAULT_RANGE
    return {"type": "number", "description": f"From {low:g} to {high:g}."}


def _sampling(params: SamplingParams) -> dict[str, Any]:
    given = params.model_dump(exclude_none=True)
    if (most := given.pop("max_completions_tokens", None)) is not None:
        given["max_completion_tokens"] = most
    return given


def _reward(grader: ScoreModel | LabelModel, text: object, is_truncated: bool) -> float:
    flags: tuple[Flag, ...] = ("model_grader_parse_error",)
    if is_truncated:
        flags = (*flags, "truncated_observation_error")
    if not isinstance(text, str):
        raise GraderFault("The model answered without text.", *flags)
    result = _result(text.strip())
    if isinstance(grader, LabelModel):
        if result not in grader.labels:
            raise GraderFault(f"The model answered with none of the labels: {_quote(text)}", *flags)
        return float(result in grader.passing_labels)
    low, high = grader.range or _DEFAULT_RANGE
    try:
        score = float(result) if not isinstance(result, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not low <= score <= high:
        raise GraderFault(f"The model gave no number from {low:g} to {high:g}: {_quote(text)}", *flags)
    return score


def _result(text: str) -> Any:
    """What the answer comes to: `result` of a JSON object, also of one in a code block, or the text itself."""
    bare = text.removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    try:
        parsed = orjson.loads(bare)
    except ValueError:
        return text
    return parsed.get("result") if isinstance(parsed, dict) else parsed


def _usage(given: object) -> Usage:
    if not isinstance(given, dict):
        return {}
    counts = {name: given[name] for name in _COUNTS if type(given.get(name)) is int and given[name] >= 0}
    details = given.get("prompt_tokens_details")
    if isinstance(details, dict) and type(details.get("cached_tokens")) is int:
        counts["cached_tokens"] = details["cached_tokens"]
    return counts


def _quote(text: str) -> str:
    return text if len(text) <= _QUOTED_CHARACTERS else f"{text[:_QUOTED_CHARACTERS]}..."
