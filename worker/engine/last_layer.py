"""The last layer's MLP is computed only where its output is read: at the positions that predict a trained token.

No later layer mixes positions, so elsewhere it changes neither the loss nor a gradient: half the row of an
answer-only dataset, a third of packed preference pairs. Zeros stand in its place; the residual stream goes on.
Which positions are read travels with the documents, as their bounds do, so that a layer that is computed again
for its gradient sees the same ones.

Shapes: T tokens of the row, R positions that are read, H hidden.
"""

from typing import Any, cast

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from worker.engine.documents import Documents


def compute_where_read(model: PreTrainedModel) -> None:
    """Have the last layer do so, where it has an MLP of linear layers; any other layer stays as it is."""
    layers = [module for module in model.base_model.modules() if isinstance(module, GradientCheckpointingLayer)]
    mlp = getattr(layers[-1], "mlp", None) if layers else None
    if mlp is not None and _is_of_linear_layers(mlp):
        where = _Where()
        layers[-1].register_forward_pre_hook(where.learn, with_kwargs=True)
        mlp.register_forward_pre_hook(where.gather)
        mlp.register_forward_hook(where.scatter)


def _is_of_linear_layers(mlp: torch.nn.Module) -> bool:
    """Whether all its weights are linear layers', two of them at least, which treat each position by itself."""
    owners = [module for module in mlp.modules() if next(module.parameters(recurse=False), None) is not None]
    return len(owners) > 1 and all(isinstance(owner, torch.nn.Linear) for owner in owners)


class _Where:
    """The positions that are read of the row that the layer computes now; None for all of them."""

    def __init__(self) -> None:
        self._read_R: torch.Tensor | None = None

    def learn(self, layer: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        documents = cast("Documents | None", kwargs.get("documents"))
        self._read_R = documents.read_R if documents is not None else None
        self._tokens = documents.bounds[-1] if documents is not None else 0

    def gather(self, mlp: torch.nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        (x_1TH,) = args
        return None if self._read_R is None else (x_1TH.index_select(1, self._read_R),)

    def scatter(self, mlp: torch.nn.Module, args: Any, out_1RH: torch.Tensor) -> torch.Tensor | None:
        if self._read_R is None:
            return None
        out_1TH = out_1RH.new_zeros(1, self._tokens, out_1RH.shape[2])
        return out_1TH.index_copy(1, self._read_R, out_1RH)
