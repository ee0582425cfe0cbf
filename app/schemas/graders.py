"""Graders on the wire."""

import math
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from app.schemas import examples
from app.schemas.common import Wire
from worker.contract.graders import Grader
from worker.contract.text import Text, storable

_MOST_DEPTH = 64


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """Without recursion, for the depth is the client's. What passes can be written again, by anyone."""
    level: list[Any] = [value]
    for _ in range(_MOST_DEPTH):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner += [*each, *each.values()]
            elif isinstance(each, list):
                inner += each
            elif isinstance(each, str):
                storable(each)
            elif isinstance(each, float) and not math.isfinite(each):
                raise PydanticCustomError("finite_number", "expected finite numbers")
        if not inner:
            return value
        level = inner
    raise PydanticCustomError("deep", "expected at most {most} levels of objects and arrays", {"most": _MOST_DEPTH})


class GraderValidate(Wire):
    model_config = examples.GRADER_VALIDATE

    grader: Grader


class GraderRun(Wire):
    model_config = examples.GRADER_RUN

    grader: Grader
    model_sample: Annotated[Text, Field(description="What the model answered; `sample.output_text` in templates.")]
    item: Annotated[
        dict[str, Any],
        AfterValidator(_plain),
        Field(description="The row of the data set that was answered; `item` in templates."),
    ] = {}  # noqa: RUF012 - pydantic copies it


class GraderValidated(Wire):
    model_config = examples.GRADER_VALIDATE

    grader: Annotated[Grader, Field(description="As it was sent.")]


class GraderErrors(Wire):
    formula_parse_error: bool
    sample_parse_error: bool
    truncated_observation_error: bool
    unresponsive_reward_error: bool
    invalid_variable_error: bool
    other_error: bool
    python_grader_server_error: bool
    python_grader_server_error_type: str | None
    python_grader_runtime_error: bool
    python_grader_runtime_error_details: str | None
    model_grader_server_error: bool
    model_grader_refusal_error: bool
    model_grader_parse_error: bool
    model_grader_server_error_details: str | None


class GraderMetadata(Wire):
    name: str
    type: str
    errors: GraderErrors
    execution_time: Annotated[float, Field(description="Seconds.")]
    scores: Annotated[dict[str, Any], Field(description="Figures behind the reward, by grader.")]
    token_usage: Annotated[int | None, Field(description="Tokens of all models that were asked.")]
    sampled_model_name: str | None


class GraderDetails(Wire):
    errors: Annotated[list[str], Field(description="What went wrong, a sentence for each fault.")]


class GraderResult(Wire):
    model_config = examples.GRADER_RESULT

    reward: Annotated[float, Field(description="0 where there were errors.")]
    sub_rewards: dict[str, Any]
    model_grader_token_usage_per_model: dict[str, Any]
    metadata: GraderMetadata
    hone: GraderDetails
