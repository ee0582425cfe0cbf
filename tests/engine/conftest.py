"""Tiny bases, example data and a real trainer process, shared by the engine's tests."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from tests.engine.trainer_process import TrainerProcess
from tests.tiny import Family, build_tiny_base
from worker.engine import base_model


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)  # two threads on a busy machine wait for each other most of the time


@pytest.fixture(scope="session")
def base_directories(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, Path]:
    root = tmp_path_factory.mktemp("bases")
    families: tuple[Family, ...] = ("llama", "qwen2")
    return {family: build_tiny_base(root / family, family=family) for family in families}


@pytest.fixture(scope="session")
def load_base(base_directories: dict[Family, Path]) -> Callable[[Family], PreTrainedModel]:
    """Loads a family's base anew."""

    def load(family: Family) -> PreTrainedModel:
        return base_model.load(base_directories[family], device="cpu", dtype="float32", tick=lambda: None)

    return load


@pytest.fixture(params=["llama", "qwen2"])
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture
def base(load_base: Callable[[Family], PreTrainedModel], family: Family) -> PreTrainedModel:
    return load_base(family)


@pytest.fixture(scope="session")
def trainer() -> Iterator[TrainerProcess]:
    """One trainer for all tests that do not end it: its base stays warm."""
    with TrainerProcess() as process:
        yield process
