"""Float64 all the way: models compute norms and softmax in float32 whatever their weights are."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

_NARROWING = (torch.Tensor.to, torch.Tensor.float, F.softmax, torch.softmax, torch.Tensor.softmax)


class Float64(TorchFunctionMode):
    """Within it, a float64 tensor is never made float32."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _NARROWING and args[0].dtype == torch.float64:
            if func is torch.Tensor.float:
                return args[0]
            args = tuple(_widened(value) for value in args)
            kwargs = {name: _widened(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def widen(model: PreTrainedModel) -> None:
    """Make every parameter, the adapter's too, float64."""
    for parameter in model.parameters():
        parameter.data = parameter.data.double()


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
