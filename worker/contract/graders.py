"""Graders as clients send them: what gives a model's sample a reward. OpenAI's shapes, and `pass_threshold`."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from worker.contract.text import Text

MAX_SOURCE_BYTES = 256 * 1024
MAX_FORMULA_CHARACTERS = 2048
MAX_GRADERS = 16
MAX_MESSAGES = 64

Metric = Literal[
    "cosine",
    "fuzzy_match",
    "bleu",
    "gleu",
    "meteor",
    "rouge_1",
    "rouge_2",
    "rouge_3",
    "rouge_4",
    "rouge_5",
    "rouge_l",
]


def _short_source(source: str) -> str:
    if len(source.encode()) > MAX_SOURCE_BYTES:
        raise PydanticCustomError("long_source", "expected at most 256 KB of source")
    return source


Name = Annotated[Text, Field(min_length=1, max_length=128)]


class Part(BaseModel):
    """Unknown fields are ignored, as at OpenAI; "7" is not a number and true is not 1."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class StringCheck(Part):
    """1 or 0. `like` asks whether the input contains the reference, `ilike` whatever their case."""

    type: Literal["string_check"]
    name: Name
    input: Text
    reference: Text
    operation: Literal["eq", "ne", "like", "ilike"]


class TextSimilarity(Part):
    """From 0 to 1."""

    type: Literal["text_similarity"]
    name: Name
    input: Text
    reference: Text
    evaluation_metric: Metric
    pass_threshold: float | None = Field(
        default=None, ge=0, le=1, description="Beyond OpenAI's: the reward is then 1 from this score on, else 0."
    )


class Python(Part):
    """What its function `grade(sample, item)` returns."""

    type: Literal["python"]
    name: Name
    source: Annotated[Text, AfterValidator(_short_source)]
    image_tag: Text | None = None


class TextPart(Part):
    type: Literal["input_text", "output_text"]
    text: Text


class ImagePart(Part):
    type: Literal["input_image"]
    image_url: Text
    detail: Literal["auto", "low", "high"] | None = None


class Audio(Part):
    data: Text
    format: Literal["mp3", "wav"]


class AudioPart(Part):
    type: Literal["input_audio"]
    input_audio: Audio


# A tag in brackets is no field of the client's: `app.api.errors` leaves it out of a fault's path.
def _kind(value: Any) -> str:
    """The tag of an object with a `type`."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"[{kind}]"


def _part_kind(value: Any) -> str:
    return "[text]" if isinstance(value, str) else _kind(value)


def _content_kind(value: Any) -> str:
    return "[parts]" if isinstance(value, list) else _part_kind(value)


_PARTS = (
    Annotated[Text, Tag("[text]")]
    | Annotated[TextPart, Tag("[input_text]")]
    | Annotated[TextPart, Tag("[output_text]")]
    | Annotated[ImagePart, Tag("[input_image]")]
    | Annotated[AudioPart, Tag("[input_audio]")]
)
_BAD_PART: dict[str, Any] = {
    "custom_error_type": "content",
    "custom_error_message": "expected text, or a part of type input_text, output_text, input_image or input_audio",
}
ContentPart = Annotated[_PARTS, Discriminator(_part_kind, **_BAD_PART)]
Content = Annotated[
    _PARTS | Annotated[list[ContentPart], Field(max_length=MAX_MESSAGES), Tag("[parts]")],
    Discriminator(_content_kind, **_BAD_PART),
]


class Message(Part):
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    type: Literal["message"] | None = None


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]


class SamplingParams(Part):
    """`max_completions_tokens` is spelled as at OpenAI."""

    seed: int | None = None
    top_p: float | None = Field(default=None, ge=0, le=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    max_completions_tokens: int | None = Field(default=None, ge=1)
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None


def _is_range(value: list[float]) -> list[float]:
    if value[0] >= value[1]:
        raise PydanticCustomError("range", "expected two numbers, the lower one first")
    return value


class ScoreModel(Part):
    """A number in `range` that a model says."""

    type: Literal["score_model"]
    name: Name
    model: Name
    input: Messages
    range: Annotated[list[float], Field(min_length=2, max_length=2), AfterValidator(_is_range)] | None = None
    sampling_params: SamplingParams | None = None


def _are_labels(value: list[str]) -> list[str]:
    if len(set(value)) != len(value):
        raise PydanticCustomError("labels", "expected labels that differ")
    return value


Labels = Annotated[list[Name], Field(min_length=1, max_length=64), AfterValidator(_are_labels)]


class LabelModel(Part):
    """1 if the label that a model chooses is one of `passing_labels`, else 0. Only inside of a multi grader."""

    type: Literal["label_model"]
    name: Name
    model: Name
    input: Messages
    labels: Labels
    passing_labels: Labels


_LEAVES = (
    Annotated[StringCheck, Tag("[string_check]")]
    | Annotated[TextSimilarity, Tag("[text_similarity]")]
    | Annotated[Python, Tag("[python]")]
    | Annotated[ScoreModel, Tag("[score_model]")]
)
_INNER = _LEAVES | Annotated[LabelModel, Tag("[label_model]")]


def _bad_type(*types: str) -> dict[str, Any]:
    listed = f"{', '.join(types[:-1])} or {types[-1]}"
    return {"custom_error_type": "grader", "custom_error_message": f"expected a grader of type {listed}"}


InnerGrader = Annotated[
    _INNER, Discriminator(_kind, **_bad_type("string_check", "text_similarity", "python", "score_model", "label_model"))
]


def _graders_kind(value: Any) -> str:
    """One grader, a list of them, or an object of graders by name: the three shapes that are in use."""
    if isinstance(value, list):
        return "[list]"
    if isinstance(value, dict):
        return "[one]" if isinstance(value.get("type"), str) else "[named]"
    return "[one]" if isinstance(value, BaseModel) else "[unknown]"


def _count(graders: Any) -> Any:
    if not 1 <= len(graders) <= MAX_GRADERS:
        raise PydanticCustomError("graders", "expected from 1 to {most} graders", {"most": MAX_GRADERS})
    return graders


Graders = Annotated[
    Annotated[InnerGrader, Tag("[one]")]
    | Annotated[list[InnerGrader], AfterValidator(_count), Tag("[list]")]
    | Annotated[dict[Name, InnerGrader], AfterValidator(_count), Tag("[named]")],
    Discriminator(
        _graders_kind,
        custom_error_type="graders",
        custom_error_message="expected a grader, a list of graders, or an object of graders by name",
    ),
]


class Multi(Part):
    """What the formula `calculate_output` makes of the rewards of `graders`, which it knows by their names."""

    type: Literal["multi"]
    name: Name
    graders: Graders
    calculate_output: Annotated[Text, Field(min_length=1, max_length=MAX_FORMULA_CHARACTERS)]

    def by_name(self) -> list[tuple[str, "InnerGrader"]]:
        """The graders and the names that the formula has for them: keys of an object, else their own."""
        if isinstance(self.graders, dict):
            return list(self.graders.items())
        graders = self.graders if isinstance(self.graders, list) else [self.graders]
        return [(grader.name, grader) for grader in graders]


Grader = Annotated[
    _LEAVES | Annotated[Multi, Tag("[multi]")],
    Discriminator(_kind, **_bad_type("string_check", "text_similarity", "python", "score_model", "multi")),
]
AnyGrader = StringCheck | TextSimilarity | Python | ScoreModel | LabelModel | Multi
