"""What usage costs by the price list."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from app.db.usage_models import Measure
from app.prices import Prices
from app.services.usage import Line

# Of each measure that may cost something: its name and unit in a line item, and how many of its amounts are one unit.
_ITEMS = {
    Measure.GPU_MILLISECONDS: ("gpu", "duration_seconds", Decimal(1000)),
    Measure.CPU_MILLISECONDS: ("cpu", "duration_seconds", Decimal(1000)),
    Measure.TRAINED_TOKENS: ("trained_tokens", "tokens", Decimal(1)),
    # A gigabyte is 10^9 bytes and a month 30 days, of which a line is one.
    Measure.STORED_BYTES: ("storage", "gigabyte_months", Decimal(30 * 10**9)),
}


@dataclass(frozen=True)
class Cost:
    """`amount` is in the price list's currency; None without a list."""

    project_id: str
    line_item: str
    quantity: Decimal
    unit: str
    amount: Decimal | None


def of(found: Sequence[Line], prices: Prices | None) -> list[Cost]:
    """One for each line that may cost something."""
    return [_of_line(line, prices) for line in found if line.measure in _ITEMS]


def _of_line(line: Line, prices: Prices | None) -> Cost:
    name, unit, size = _ITEMS[line.measure]
    quantity = Decimal(line.amount) / size
    amount = None if prices is None else quantity * _unit_price(line, prices)
    item = name if line.model is None else f"{line.model}, {name}"
    return Cost(line.project_id, item, quantity, unit, amount)


def _unit_price(line: Line, prices: Prices) -> Decimal:
    of_model = prices.of_model(line.model)
    return {
        Measure.GPU_MILLISECONDS: of_model.gpu_hour / 3600,
        Measure.CPU_MILLISECONDS: of_model.cpu_hour / 3600,
        Measure.TRAINED_TOKENS: of_model.million_trained_tokens / 10**6,
        Measure.STORED_BYTES: prices.gb_month,
    }[line.measure]
