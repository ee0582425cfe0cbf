import math

import pytest
import torch

from worker.contract.errors import TrainError
from worker.contract.spec import OptimizerSettings
from worker.engine import optim


def settings(**changes: object) -> OptimizerSettings:
    return OptimizerSettings.model_validate({"learning_rate": 1.0, **changes})


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25]),
        ("cosine", [1 / 3, 2 / 3, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
    ],
)
def test_schedules(schedule: str, expected: list[float]) -> None:
    given = settings(schedule=schedule, warmup_steps=2)
    assert [optim.learning_rate(given, step, 6) for step in range(1, 7)] == pytest.approx(expected)


def test_schedules_without_warmup_and_with_nothing_else() -> None:
    assert optim.learning_rate(settings(schedule="linear"), 1, 4) == 1
    assert optim.learning_rate(settings(schedule="cosine", warmup_steps=3), 3, 3) == 0.75
    assert optim.learning_rate(settings(schedule="cosine"), 1, 1) == 1


def test_the_step_divides_sums_once_and_clips() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    given = settings(max_gradient_norm=1.0)
    optimizer = optim.adamw([parameter], given)
    parameter.grad = torch.tensor([30.0, 40.0])
    assert optim.take_step(optimizer, given, total_weight=5.0, rate=0.1, step=1) == pytest.approx(10)
    # After one step Adam's first moment is (1 - beta1) times the clipped gradient.
    torch.testing.assert_close(optimizer.state[parameter]["exp_avg"], 0.1 * torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(parameter.detach(), torch.tensor([-0.1, -0.1]))
    assert parameter.grad is None


def test_a_step_without_trained_tokens_has_a_zero_gradient() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = optim.adamw([parameter], settings())
    assert optim.take_step(optimizer, settings(), total_weight=0.0, rate=0.1, step=1) == 0
    assert parameter.tolist() == [1, 1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(value: float) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = optim.adamw([parameter], settings())
    parameter.grad = torch.tensor([1.0, value])
    with pytest.raises(TrainError) as caught:
        optim.take_step(optimizer, settings(), total_weight=1.0, rate=0.1, step=9)
    assert caught.value.code == "non_finite_loss"
    assert "step 9" in caught.value.message
    assert parameter.tolist() == [1, 1]
    assert not optimizer.state
