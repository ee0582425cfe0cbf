"""The price list, as the settings give it: what usage costs, for charge-back between teams."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

EVERY_MODEL = "*"
Price = Annotated[Decimal, Field(ge=0, max_digits=18, decimal_places=9)]


class ModelPrices(BaseModel):
    """What training on a base model costs; what is not named is free."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gpu_hour: Price = Decimal(0)
    cpu_hour: Price = Decimal(0)
    million_trained_tokens: Price = Decimal(0)


class Prices(BaseModel):
    """`gb_month` is a price for 10^9 bytes over 30 days. `models` is by the base models' ids, "*" being all others."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    currency: str = Field(pattern="^[a-z]{3}$")
    gb_month: Price = Decimal(0)
    models: Mapping[str, ModelPrices] = Field(default_factory=dict)

    def of_model(self, model: str | None) -> ModelPrices:
        return self.models.get(model or EVERY_MODEL) or self.models.get(EVERY_MODEL) or ModelPrices()
