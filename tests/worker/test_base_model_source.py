"""Bases: what is registered is what is trained on."""

import json
import shutil
from pathlib import Path

import pytest

from app.errors import InvalidRequest
from app.resources import Resources
from app.services import base_models
from tests.tiny import build_tiny_base
from worker.bases import Bases, BaseUnavailable
from worker.data import base_model_source
from worker.data.base_model_source import BadBaseModel


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def copy(pristine: Path, tmp_path: Path) -> Path:
    shutil.copytree(pristine, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_directory_is_measured_without_loading_it(pristine: Path) -> None:
    from transformers import AutoModelForCausalLM

    directory, revision = base_model_source.fetch(str(pristine))
    facts = base_model_source.inspect(directory, revision)
    model = AutoModelForCausalLM.from_pretrained(pristine)
    assert facts.num_parameters == model.num_parameters()
    assert facts.context_tokens == model.config.max_position_embeddings


def test_any_changed_byte_is_another_revision(copy: Path) -> None:
    before = base_model_source.directory_revision(copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert base_model_source.directory_revision(copy) != before


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("model.safetensors", None, "no .safetensors"),
        ("tokenizer.json", None, "no tokenizer.json"),
        ("config.json", None, "no config.json"),
        ("config.json", b"{", "not valid JSON"),
        ("config.json", b"[]", "not a JSON object"),
        ("config.json", json.dumps({"auto_map": {"AutoModel": "code.py"}}).encode(), "code of its own"),
        ("config.json", b"{}", "max_position_embeddings"),
        ("model.safetensors", b"\xff" * 40, "not a safetensors file"),
    ],
)
def test_what_cannot_be_a_base_is_refused(copy: Path, name: str, content: bytes | None, told: str) -> None:
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    with pytest.raises(BadBaseModel, match=told):
        base_model_source.inspect(copy, "r")


def test_a_source_is_a_directory_or_a_repository(pristine: Path) -> None:
    assert base_model_source.normalize_source(str(pristine)) == str(pristine.resolve())
    assert base_model_source.normalize_source("owner/name-1.5") == "owner/name-1.5"
    for wrong in ("nowhere", "/no/such/directory", "a/b/c", "../up"):
        with pytest.raises(BadBaseModel, match="neither"):
            base_model_source.normalize_source(wrong)


def test_a_repository_is_found_in_the_hugging_face_cache(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "a" * 40
    cached = tmp_path / "hub" / "models--owner--name"
    shutil.copytree(pristine, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    directory, revision = base_model_source.fetch("owner/name")
    assert revision == commit
    assert (directory / "config.json").exists()
    with pytest.raises(BadBaseModel, match="could not be fetched"):
        base_model_source.fetch("owner/other")


async def test_a_base_of_before_files_were_recorded_is_read_where_it_lies(
    resources: Resources, pristine: Path, copy: Path
) -> None:
    facts = base_model_source.inspect(copy, base_model_source.directory_revision(copy))
    async with resources.write() as session:
        base = await base_models.add(session, model_id="mine", source=str(copy), facts=facts)
    bases = Bases(resources)
    async with bases.use(base) as directory:
        assert directory == copy
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rope_theta": 7.0}))
    with pytest.raises(BaseUnavailable, match="cannot use the base model mine"):
        async with bases.use(base):
            pass
    assert "has changed since it was registered" in bases.unavailable["mine"]
    assert bases.excluded() == {"mine"}
    assert bases.excluded(weights=False) == set()
    shutil.copy(pristine / "config.json", copy / "config.json")
    async with bases.use(base):
        assert bases.unavailable == {}


async def test_an_id_means_one_model(resources: Resources, copy: Path) -> None:
    facts = base_model_source.inspect(copy, "r1")
    other = base_model_source.inspect(copy, "r2")
    async with resources.write() as session:
        first = await base_models.add(session, model_id="mine", source=str(copy), facts=facts)
        assert await base_models.add(session, model_id="mine", source=str(copy), facts=facts) is first
        with pytest.raises(InvalidRequest, match="registered already"):
            await base_models.add(session, model_id="mine", source=str(copy), facts=other)
