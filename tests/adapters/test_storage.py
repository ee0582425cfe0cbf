"""What every storage must do; each test runs on each implementation."""

import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from app.storage.base import ObjectCorrupt, ObjectMissing, Storage
from app.storage.local import LocalStorage

_IMPLEMENTATIONS: dict[str, Callable[[Path], Storage]] = {"local": lambda path: LocalStorage(path / "objects")}


@pytest.fixture(params=_IMPLEMENTATIONS)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return _IMPLEMENTATIONS[request.param](tmp_path)


async def test_what_was_put_comes_back(storage: Storage, tmp_path: Path) -> None:
    content = bytes(range(256)) * 20_000  # more than one chunk
    stored = await storage.put_file("files/file-a", _file(tmp_path, content))
    assert (stored.key, stored.bytes) == ("files/file-a", len(content))
    assert stored.sha256 == hashlib.sha256(content).hexdigest()
    assert await _joined(storage.read("files/file-a")) == content
    copy = tmp_path / "copy"
    await storage.get_file("files/file-a", copy, sha256=stored.sha256)
    assert copy.read_bytes() == content


@pytest.mark.parametrize("start", [0, 1, 9, 10, 11])
async def test_reading_begins_anywhere(storage: Storage, tmp_path: Path, start: int) -> None:
    await storage.put_file("a", _file(tmp_path, b"0123456789"))
    assert await _joined(storage.read("a", start=start)) == b"0123456789"[start:]


async def test_an_empty_object_is_an_object(storage: Storage, tmp_path: Path) -> None:
    stored = await storage.put_file("a", _file(tmp_path, b""))
    assert stored.bytes == 0
    assert await _joined(storage.read("a")) == b""


async def test_a_second_put_replaces_the_first(storage: Storage, tmp_path: Path) -> None:
    await storage.put_file("a", _file(tmp_path, b"first"))
    await storage.put_file("a", _file(tmp_path, b"second"))
    assert await _joined(storage.read("a")) == b"second"


async def test_a_reader_keeps_the_object_that_it_began_with(storage: Storage, tmp_path: Path) -> None:
    await storage.put_file("a", _file(tmp_path, b"x" * (3 << 20)))
    chunks = storage.read("a")
    begun = await anext(chunks)
    await storage.put_file("a", _file(tmp_path, b"y"))
    assert begun + await _joined(chunks) == b"x" * (3 << 20)


async def test_what_is_missing_is_said_to_be(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(ObjectMissing):
        await _joined(storage.read("jobs/none"))
    with pytest.raises(ObjectMissing):
        await storage.get_file("jobs/none", tmp_path / "copy", sha256="0" * 64)
    assert not (tmp_path / "copy").exists()


async def test_other_bytes_than_were_recorded_are_not_handed_out(storage: Storage, tmp_path: Path) -> None:
    await storage.put_file("a", _file(tmp_path, b"these bytes"))
    with pytest.raises(ObjectCorrupt):
        await storage.get_file("a", tmp_path / "copy", sha256=hashlib.sha256(b"those bytes").hexdigest())
    assert not (tmp_path / "copy").exists()


async def test_deleting_is_final_and_may_be_repeated(storage: Storage, tmp_path: Path) -> None:
    await storage.put_file("a/b", _file(tmp_path, b"x"))
    await storage.delete("a/b")
    await storage.delete("a/b")
    with pytest.raises(ObjectMissing):
        await _joined(storage.read("a/b"))


@pytest.mark.parametrize("key", ["", "/a", "a/", "../a", "a/../b", "a//b", "a b", "a\0", ".hidden", "é", "a\n"])
async def test_keys_that_are_not_ours_are_refused(storage: Storage, tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="not a storage key"):
        await storage.put_file(key, _file(tmp_path, b"x"))


async def test_a_put_that_fails_leaves_nothing(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await storage.put_file("a", tmp_path / "missing")
    with pytest.raises(ObjectMissing):
        await _joined(storage.read("a"))


def _file(directory: Path, content: bytes) -> Path:
    path = directory / "source"
    path.write_bytes(content)
    return path


async def _joined(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])
