"""The last layer computes its MLP at the trained positions alone, and nothing that is read changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.engine import reference
from tests.engine.examples import load_examples, random_examples
from tests.tiny import Family
from worker.contract.spec import LoraSettings
from worker.data.token_file import TokenFile
from worker.engine import memory, sft
from worker.engine.packing import pack


@pytest.fixture
def data(tmp_path: Path) -> TokenFile:
    return load_examples(tmp_path / "data", random_examples(4, seed=4))


def mlps(model: PreTrainedModel) -> list[torch.nn.Module]:
    return [module for name, module in model.named_modules() if name.endswith(".mlp")]


@pytest.mark.parametrize("recompute", [False, True])
def test_only_the_last_mlp_sees_only_trained_positions(base: PreTrainedModel, data: TokenFile, recompute: bool) -> None:
    reference.attach(base)
    base.train()
    memory.recompute_activations(base, recompute)
    batch = pack(data, [0, 1, 2, 3])
    seen: list[list[int]] = [[] for _ in mlps(base)]
    for mlp, lengths in zip(mlps(base), seen, strict=True):
        projection: Any = mlp.gate_proj
        projection.register_forward_pre_hook(lambda _, args, lengths=lengths: lengths.append(args[0].shape[1]))
    sft.train(base, batch)
    passes = 2 if recompute else 1
    trained = len(batch.sources_N)
    assert 0 < trained < batch.num_tokens
    assert seen == [[batch.num_tokens] * passes] * (len(seen) - 1) + [[trained] * passes]


def test_hidden_states_and_gradients_are_those_of_all_positions(
    load_base: Callable[[Family], PreTrainedModel], family: Family, data: TokenFile
) -> None:
    model = load_base(family)
    adapter = reference.attach(model, LoraSettings(rank=4))
    batch = pack(data, [0, 1, 2, 3])
    weights_NH = torch.randn(len(batch.sources_N), model.config.hidden_size)

    def computed(only_sources: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        read_NH = sft.hidden_states(model, batch, only_sources=only_sources)[batch.sources_N]
        (read_NH * weights_NH).sum().backward()
        return read_NH.detach(), reference.gradients(adapter, 1.0)

    (everywhere_NH, expected), (found_NH, found) = computed(False), computed(True)
    torch.testing.assert_close(found_NH, everywhere_NH, rtol=0, atol=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5)
