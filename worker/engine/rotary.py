"""Rotary embeddings that depend on a sequence's length, decided for each document of a pack.

LongRoPE (Phi, arXiv:2402.13753) and dynamic NTK choose their frequencies by the longest position they
are given, which in a packed row is another example's. "dynamic" also remembers the longest it ever
saw. Here each document is computed as if it were the first and only one.
"""

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

from worker.contract.errors import TrainError

_LENGTH_DEPENDENT = {"dynamic", "longrope"}


def follow_documents(model: PreTrainedModel) -> None:
    """Make every length-dependent rotary embedding of the model look at one document at a time.

    TrainError if the config asks for one that is not found.
    """
    found = _length_dependent(model)
    for rotary in found:
        # On the instance: the class is transformers' own, and eager reference and training use the same model.
        rotary.forward = _EachDocument(rotary)
    config = model.config.get_text_config()
    if not found and _declared(getattr(config, "rope_parameters", None) or {}) & _LENGTH_DEPENDENT:
        raise TrainError(
            "unsupported_model",
            "This base model cannot be trained here: its position encoding depends on the length of an example "
            "in a way of its own.",
            param="model",
        )


def depends_on_length(model: PreTrainedModel) -> bool:
    return bool(_length_dependent(model))


def _length_dependent(model: PreTrainedModel) -> list[torch.nn.Module]:
    return [module for module in model.modules() if _kinds(getattr(module, "rope_type", None)) & _LENGTH_DEPENDENT]


class _EachDocument:
    """Calls a fresh copy of a rotary embedding for each document of a row; rows begin anew where positions do."""

    def __init__(self, rotary: torch.nn.Module) -> None:
        self._fresh = copy.deepcopy(rotary, {id(rotary.config): rotary.config})

    def __call__(self, x: torch.Tensor, position_ids: torch.Tensor, *more: Any, **named: Any) -> Any:
        assert position_ids.shape[0] == 1, "rows of several sequences do not occur in training"
        starts = (position_ids[0].diff() != 1).nonzero()[:, 0] + 1
        parts = position_ids.tensor_split(starts.cpu(), dim=1)
        tables = [self._copy()(x, part, *more, **named) for part in parts]
        return tuple(torch.cat(same, dim=1) for same in zip(*tables, strict=True))

    def _copy(self) -> torch.nn.Module:
        return copy.deepcopy(self._fresh, {id(self._fresh.config): self._fresh.config})


def _kinds(rope_type: object) -> set[str]:
    """One kind, or one for each kind of layer."""
    if isinstance(rope_type, dict):
        return {kind for kind in rope_type.values() if isinstance(kind, str)}
    return {rope_type} if isinstance(rope_type, str) else set()


def _declared(parameters: dict[str, Any]) -> set[str]:
    tables = [parameters, *(table for table in parameters.values() if isinstance(table, dict))]
    return {table["rope_type"] for table in tables if "rope_type" in table}
