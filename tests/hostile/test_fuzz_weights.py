"""Archives, headers of weights and configurations that were tampered with: read rightly, or refused."""

import contextlib
import io
import json
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from tests.hostile.fuzzing import fuzzed
from tests.hostile.test_fuzz_rows import JSON
from tests.hostile.test_weights import LAYERS, an_adapter
from worker.data import adapter_source, archive, base_model_source, tensor_headers
from worker.data.adapter_source import CONFIG, WEIGHTS, BadAdapter
from worker.data.archive import BadArchive
from worker.data.base_manifest import BadBaseModel
from worker.data.tensor_headers import NotSafetensors

# What to write where: pieces put over a good file, or into it, or out of it.
EDITS = st.lists(
    st.tuples(st.sampled_from(["over", "in", "out"]), st.integers(0, 2000), st.binary(max_size=12)), max_size=6
)


def edited(content: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    for how, at, piece in edits:
        at = at % (len(content) + 1)
        end = at if how == "in" else at + len(piece)
        content = content[:at] + (b"" if how == "out" else piece) + content[end:]
    return content


def _packed() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as bundle:
        for name in (CONFIG, "best/" + WEIGHTS, "README.md"):
            bundle.writestr(zipfile.ZipInfo(name), name * 3)
    return stream.getvalue()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@fuzzed(150)
@given(edits=EDITS)
@example(edits=[])
@example(edits=[("out", 0, b"\0")])  # which moves an entry to a negative place
def test_archives(scratch: Path, edits: list[tuple[str, int, bytes]]) -> None:
    packed, target = scratch / "packed.zip", scratch / "around" / "unpacked"
    packed.write_bytes(edited(_packed(), edits))
    shutil.rmtree(scratch / "around", ignore_errors=True)
    with contextlib.suppress(BadArchive):
        archive.unpack(packed, target)
    made = list((scratch / "around").rglob("*"))
    assert all(path.is_relative_to(target) or path == target for path in made)
    assert not any(path.is_symlink() for path in made)
    assert sum(path.stat().st_size for path in made if path.is_file()) <= packed.stat().st_size


_ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "F8_E4M3", "F99", ""]) | JSON,
        "shape": st.lists(st.integers(0, 8), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(0, 40), min_size=2, max_size=2) | JSON,
    },
)
HEADERS = st.dictionaries(
    st.sampled_from(["a", "b", "a.weight", "__metadata__"]) | st.text(max_size=4), _ENTRY | JSON, max_size=3
)


@fuzzed(60)
@given(
    header=HEADERS.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60),
    length=st.none() | st.integers(0, 2**64 - 1),
    data=st.binary(max_size=40),
)
@example(header=b"{}", length=None, data=b"")
@example(header=b"[" * 100_000, length=None, data=b"")
@example(header=b'{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}', length=None, data=bytes(4))
def test_headers(scratch: Path, header: bytes, length: int | None, data: bytes) -> None:
    path = scratch / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    try:
        found = tensor_headers.read(path)
    except NotSafetensors:
        return
    for tensor in found.values():
        assert 0 <= tensor.start <= tensor.start + tensor.bytes <= path.stat().st_size
    try:
        with safe_open(path, framework="numpy") as weights:
            names = set(weights.keys())
    except SafetensorError:
        return  # it is stricter than we are, and is asked too before anything is trained on
    assert names == set(found)


_CONFIG = st.fixed_dictionaries(
    {},
    optional={
        "peft_type": st.sampled_from(["LORA", "LORA", "LORA", "IA3"]) | JSON,
        "task_type": st.sampled_from(["CAUSAL_LM", None]) | JSON,
        "r": st.sampled_from([2, 8]) | JSON,
        "lora_alpha": st.sampled_from([4, 0.5]) | JSON,
        "lora_dropout": JSON,
        "use_rslora": JSON,
        "use_dora": JSON,
        "init_lora_weights": JSON,
        "target_modules": JSON,
        "bias": JSON,
        "base_model_name_or_path": JSON,
        "rank_pattern": JSON,
    },
)


@fuzzed(40)
@given(
    config=_CONFIG.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40),
    edits=st.just([]) | EDITS,
)
@example(config=b'{"peft_type": "LORA", "init_lora_weights": []}', edits=[])
@example(config=b'{"peft_type": "LORA", "init_lora_weights": {}}', edits=[])
@example(config=b'{"peft_type": "LORA", "r": 1e999}', edits=[])
@example(config=b'{"peft_type": "LORA", "r": NaN, "lora_alpha": NaN}', edits=[])
@example(config=b"\xff\xfe", edits=[])
def test_adapters(scratch: Path, config: bytes, edits: list[tuple[str, int, bytes]]) -> None:
    source, target = scratch / "source", scratch / "copy"
    for directory in (source, target):
        shutil.rmtree(directory, ignore_errors=True)
    an_adapter(source)
    (source / CONFIG).write_bytes(config)
    (source / WEIGHTS).write_bytes(edited((source / WEIGHTS).read_bytes(), edits))
    try:
        adapter_source.import_directory(source, target, layers_of_base=LAYERS, base_id="acme/base")
    except BadAdapter as refused:
        assert len(str(refused)) < 1000
        return
    assert json.loads((target / CONFIG).read_text())["base_model_name_or_path"] == "acme/base"


@fuzzed(30)
@given(config=JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40))
@example(config=b'{"max_position_embeddings": true}')
@example(config=b'{"max_position_embeddings": 1e999}')
@example(config=b"\xff")
def test_configurations(scratch: Path, config: bytes) -> None:
    base = scratch / "base"
    base.mkdir(exist_ok=True)
    an = an_adapter(scratch / "weights") if not (scratch / "weights").exists() else scratch / "weights"
    shutil.copy(an / WEIGHTS, base / "model.safetensors")
    (base / "tokenizer.json").write_text("{}")
    (base / "config.json").write_bytes(config)
    try:
        facts = base_model_source.inspect(base, "r")
    except BadBaseModel:
        return
    assert facts.context_tokens >= 1
