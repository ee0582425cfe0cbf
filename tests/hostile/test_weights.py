"""Weights and adapters that are not what their names say: refused by what they hold, and nothing of them is run."""

import json
import os
import pickle
import shutil
import stat
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.unit.chat_bases import write_base
from worker.data import adapter_source, archive, base_manifest, base_model_source, tensor_headers
from worker.data.adapter_source import CONFIG, WEIGHTS, BadAdapter
from worker.data.archive import BadArchive
from worker.data.base_manifest import BadBaseModel

LAYERS = {"model.layers.0.mlp.up_proj": (12, 6)}
RANK = 2


class Canary:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "it-was-run"


def pickles(canary: Path) -> dict[str, bytes]:
    """As torch wrote them over the years, and posing as safetensors."""
    plain = pickle.dumps({"weight": Canary(canary)})
    header = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    return {
        "a pickle": plain,
        "protocol 0": pickle.dumps(Canary(canary), protocol=0),
        "a pickle behind a header": struct.pack("<Q", len(header)) + header + plain,
        "a pickle as the header": struct.pack("<Q", len(plain)) + plain,
        "torch's zip": _zip(canary.parent / "torch.zip", {"archive/data.pkl": plain}).read_bytes(),
        "nothing": b"",
        "a length alone": struct.pack("<Q", 1 << 62),
        "a header of 100 GB": struct.pack("<Q", 100 << 30) + b"{}",
        "a deep header": _with_header(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        "a name twice": _with_header(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
        ),
        "beyond the end": _with_header(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'),
        "before the beginning": _with_header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}'),
        "a shape of 2^200": _with_header(b'{"a":{"dtype":"F32","shape":[%d],"data_offsets":[0,4]}}' % 2**200),
        "a number of 5000 digits": _with_header(
            b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,4]}}' % (b"9" * 5000)
        ),
        "not a dictionary": _with_header(b"[1, 2]"),
    }


NAMES = [
    "a deep header", "a header of 100 GB", "a length alone", "a name twice", "a number of 5000 digits", "a pickle",
    "a pickle as the header", "a pickle behind a header", "a shape of 2^200", "before the beginning", "beyond the end",
    "not a dictionary", "nothing", "protocol 0", "torch's zip",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_base_in_another_format(name: str, canary: Path, tmp_path: Path) -> None:
    base = a_base(tmp_path / "base")
    (base / "model.safetensors").write_bytes(pickles(canary)[name])
    if name == "a pickle behind a header":  # a whole file without tensors, and bytes behind them that nobody reads
        assert tensor_headers.read(base / "model.safetensors") == {}
    else:
        with pytest.raises(BadBaseModel, match=r"model\.safetensors"):
            base_model_source.inspect(base, "r")
    assert not canary.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.h5", "model.gguf"])
def test_a_base_without_safetensors(name: str, canary: Path, tmp_path: Path) -> None:
    base = a_base(tmp_path / "base")
    (base / "model.safetensors").unlink()
    (base / name).write_bytes(pickle.dumps(Canary(canary)))
    assert name not in {file.name for file in base_manifest.of_directory(base)}
    with pytest.raises(BadBaseModel, match=r"no \.safetensors file; other formats are not loaded"):
        base_model_source.inspect(base, "r")
    assert not canary.exists()


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Evil"}}, "code of its own"),
        ({"max_position_embeddings": 2**70, "auto_map": {}}, "code of its own"),
        ('{"a":' * 100_000, "not valid JSON"),
        ('{"a": "' + "x" * (1 << 20) + '"}', "at most"),
    ],
)
def test_the_configuration_of_a_base(config: Any, told: str, tmp_path: Path) -> None:
    base = a_base(tmp_path / "base")
    (base / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(BadBaseModel, match=told):
        base_model_source.inspect(base, "r")


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_in_another_format(name: str, canary: Path, tmp_path: Path) -> None:
    source = an_adapter(tmp_path / "source")
    (source / WEIGHTS).write_bytes(pickles(canary)[name])
    with pytest.raises(BadAdapter, match="not a whole safetensors file"):
        bring(source, tmp_path)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
def test_an_adapter_without_safetensors(name: str, canary: Path, tmp_path: Path) -> None:
    source = an_adapter(tmp_path / "source")
    (source / WEIGHTS).unlink()
    (source / name).write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(BadAdapter, match="only PEFT directories with safetensors"):
        bring(source, tmp_path)
    assert not canary.exists()


@pytest.mark.parametrize(
    "elsewhere", ["/etc/passwd", "../../x", "https://evil.example/model", "evil/model", "\\\\host\\share", "x" * 9999]
)
def test_the_base_that_an_adapter_names_is_never_followed(elsewhere: str, tmp_path: Path) -> None:
    source = an_adapter(tmp_path / "source", base_model_name_or_path=elsewhere, revision=elsewhere)
    bring(source, tmp_path)
    kept = (tmp_path / "copy" / CONFIG).read_text()
    assert json.loads(kept)["base_model_name_or_path"] == "acme/base"
    assert elsewhere not in kept


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ({"model.layers.0.mlp.up_proj": (12, 7)}, "this base need"),
        ({"model.layers.0.mlp.down_proj": (12, 6)}, "no linear layer"),
        ({"model.layers.0.mlp.up_proj": (12, 6), "model.layers.1.mlp.up_proj": (12, 6)}, "leaves out"),
    ],
)
def test_an_adapter_of_another_base(layers: dict[str, tuple[int, int]], told: str, tmp_path: Path) -> None:
    with pytest.raises(BadAdapter, match=told):
        bring(an_adapter(tmp_path / "source"), tmp_path, layers)


def test_an_archive_is_no_adapter(tmp_path: Path) -> None:
    packed = _zip(tmp_path / "adapter.zip", {CONFIG: b"{}", WEIGHTS: b""})
    with pytest.raises(BadAdapter, match="only PEFT directories"):
        bring(packed, tmp_path)


@pytest.mark.parametrize("kind", ["a pipe", "a link to a device", "a directory"])
def test_what_is_no_file_is_not_waited_for(kind: str, tmp_path: Path) -> None:
    source = an_adapter(tmp_path / "source")
    (source / WEIGHTS).unlink()
    if kind == "a pipe":
        os.mkfifo(source / WEIGHTS)
    elif kind == "a directory":
        (source / WEIGHTS).mkdir()
    else:
        (source / WEIGHTS).symlink_to("/dev/zero")
    with pytest.raises(BadAdapter, match="only PEFT directories"):
        bring(source, tmp_path)


# Names that unpacking must not follow, or make.
SLIPS = [
    "../escaped", "../../escaped", "/tmp/escaped", "a/../../escaped", "..\\escaped", "C:\\escaped", "a//b", "./a", "a/",
    "", ".hidden", "a/./b", "~/x", "a\nb", "x" * 300, "a/b/c/d/e/f/g/h/i/j", "\N{FOX FACE}", "con:x", "a b",
]  # fmt: skip


@pytest.mark.parametrize("name", SLIPS)
def test_no_name_leads_out_of_the_directory(name: str, tmp_path: Path) -> None:
    packed = _zip(tmp_path / "packed.zip", {"good": b"x", name: b"slip"})
    _refused(packed, tmp_path, "plain name")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR, stat.S_IFSOCK])
def test_nothing_but_plain_files_is_made(kind: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as bundle:
        entry = zipfile.ZipInfo("a")
        entry.external_attr = (kind | 0o777) << 16
        bundle.writestr(entry, "/etc")
        bundle.writestr("b", "x")
    _refused(tmp_path / "packed.zip", tmp_path, "not a plain file")


def test_bombs(tmp_path: Path) -> None:
    bomb = _zip(tmp_path / "deflated.zip", {"a": bytes(64 << 20)}, compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 1 << 20
    _refused(bomb, tmp_path, "is compressed")
    many = _zip(tmp_path / "many.zip", {f"f{i}": b"" for i in range(1001)})
    _refused(many, tmp_path, "1001 entries")
    twice = tmp_path / "twice.zip"
    with zipfile.ZipFile(twice, "w") as bundle:
        bundle.writestr("a", "1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            bundle.writestr("a", "2")
    _refused(twice, tmp_path, "two entries of the same name")
    _refused(_zip(tmp_path / "case.zip", {"a": b"1", "A": b"2"}), tmp_path, "two entries of the same name")


def test_entries_that_share_their_bytes(tmp_path: Path) -> None:
    """The kernel of a file is told of by many entries, so that a megabyte becomes a gigabyte."""
    packed = tmp_path / "overlapping.zip"
    with zipfile.ZipFile(packed, "w") as bundle:
        bundle.writestr("f0", bytes(1 << 20))
        for number in range(1, 100):
            entry = zipfile.ZipInfo(f"f{number}")
            entry.header_offset = 0
            entry.file_size = entry.compress_size = 1 << 20
            entry.CRC = bundle.infolist()[0].CRC
            bundle.filelist.append(entry)
            bundle.NameToInfo[entry.filename] = entry
        bundle._didModify = True  # pyright: ignore[reportAttributeAccessIssue]
    assert packed.stat().st_size < 2 << 20
    _refused(packed, tmp_path, "more than its size|Overlapped entries")


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06", b"hello", b"PK\x03\x04" + b"\0" * 100])
def test_what_is_no_archive(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "packed.zip").write_bytes(content)
    _refused(tmp_path / "packed.zip", tmp_path, "not an archive")


def test_a_directory_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_text("new")
    archive.pack(tmp_path / "source", tmp_path / "packed.zip")
    target = tmp_path / "target"
    target.mkdir()
    (target / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadArchive):
        archive.unpack(tmp_path / "packed.zip", target)
    assert not (tmp_path / "elsewhere").exists()


def a_base(directory: Path) -> Path:
    write_base(directory, "chatml")
    (directory / "config.json").write_text(json.dumps({"max_position_embeddings": 64}))
    save_file(
        {f"{path}.weight": np.zeros(size, np.float32) for path, size in LAYERS.items()}, directory / "model.safetensors"
    )
    return directory


def an_adapter(directory: Path, **changes: Any) -> Path:
    directory.mkdir()
    (directory / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 4, **changes}))
    tensors = {}
    for path, (outputs, inputs) in LAYERS.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = np.ones((RANK, inputs), np.float32)
        tensors[f"base_model.model.{path}.lora_B.weight"] = np.ones((outputs, RANK), np.float32)
    save_file(tensors, directory / WEIGHTS)
    return directory


def bring(source: Path, tmp_path: Path, layers: dict[str, tuple[int, int]] | None = None) -> None:
    shutil.rmtree(tmp_path / "copy", ignore_errors=True)
    adapter_source.import_directory(source, tmp_path / "copy", layers_of_base=layers or LAYERS, base_id="acme/base")


def _with_header(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(4)


def _zip(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as bundle:
        for name, content in entries.items():
            entry = zipfile.ZipInfo("x")
            entry.filename = name  # as it is: the constructor would tidy it up
            entry.compress_type = compression
            bundle.writestr(entry, content)
    return path


def _refused(packed: Path, tmp_path: Path, words: str) -> None:
    """With nothing written, neither in the directory nor around it."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadArchive, match=words):
        archive.unpack(packed, tmp_path / "unpacked")
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/escaped").exists()
