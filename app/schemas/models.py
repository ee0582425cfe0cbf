"""Models on the wire."""

from typing import Literal

from pydantic import Field

from app.schemas import examples
from app.schemas.common import Wire


class ModelDetails(Wire):
    """What OpenAI's model object has no place for."""

    kind: Literal["base", "alias", "fine_tuned", "shared"] = Field(
        description="A base model, another name of one, a model of this project, or one that another project shares."
    )
    base_model: str = Field(description="The base model that it is, stands for, or was trained on.")


class ModelRead(Wire):
    model_config = examples.MODEL

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = Field(description="`system`, or the id of the organization.")
    shutdown_date: None = Field(default=None, description="No model is shut down by itself.")
    hone: ModelDetails


class ModelList(Wire):
    model_config = examples.MODELS

    object: Literal["list"] = "list"
    data: list[ModelRead]


class ModelDeleted(Wire):
    model_config = examples.MODEL_DELETED

    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True
