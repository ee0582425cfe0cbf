"""What every storage must do; each test runs on each implementation."""

import hashlib
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from io import BytesIO
from pathlib import Path

import pytest

from app.storage import trial, verified
from app.storage.base import ObjectCorrupt, ObjectMissing, Storage, StoredObject
from app.storage.local import LocalStorage
from tests.servers.s3 import open_storage


@pytest.fixture(params=["local", "moto", "rclone"])
async def storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Storage]:
    if request.param == "local":
        yield LocalStorage(tmp_path / "objects")
        return
    server = request.getfixturevalue(f"{request.param}_server")
    opened = open_storage(server, server.new_bucket(), prefix="some/prefix")
    yield opened
    await opened.close()


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


@pytest.mark.parametrize(("start", "end"), [(0, 0), (0, 1), (3, 7), (3, 3), (7, 3), (9, 10), (4, 99), (10, 11)])
async def test_reading_ends_where_it_is_told_to(storage: Storage, tmp_path: Path, start: int, end: int) -> None:
    await storage.put_file("a", _file(tmp_path, b"0123456789"))
    assert await _joined(storage.read("a", start=start, end=end)) == b"0123456789"[start:end]


async def test_an_open_file_is_put_from_its_beginning_and_stays_open(storage: Storage) -> None:
    file = BytesIO(b"0123456789")
    file.seek(5)
    stored = await storage.put_file("a", file)
    assert await _joined(storage.read("a")) == b"0123456789"
    assert (stored.bytes, file.closed) == (10, False)


async def test_an_object_of_many_parts_comes_back(storage: Storage, tmp_path: Path) -> None:
    content = os.urandom(1 << 20) * 26 + b"and a bit"
    stored = await storage.put_file("a", _file(tmp_path, content))
    assert stored == StoredObject("a", len(content), hashlib.sha256(content).hexdigest())
    assert await _joined(verified.read(storage, stored)) == content
    seam = 8 << 20
    assert await _joined(storage.read("a", start=seam - 3, end=seam + 3)) == content[seam - 3 : seam + 3]


async def test_an_empty_object_is_an_object(storage: Storage, tmp_path: Path) -> None:
    stored = await storage.put_file("a", _file(tmp_path, b""))
    assert stored.bytes == 0
    assert await _joined(storage.read("a")) == b""
    assert await _joined(verified.read(storage, stored)) == b""
    await storage.get_file("a", tmp_path / "copy", sha256=stored.sha256)
    assert (tmp_path / "copy").read_bytes() == b""


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


@pytest.mark.parametrize("content", [b"", b"y" * 99, b"y" * 100, b"x" * 101, b"x" * (2 << 20)])
async def test_whoever_reads_a_wrong_object_never_gets_to_its_end(
    storage: Storage, tmp_path: Path, content: bytes
) -> None:
    recorded = StoredObject("a", 100, hashlib.sha256(b"x" * 100).hexdigest())
    await storage.put_file("a", _file(tmp_path, content))
    received: list[bytes] = []

    async def receive() -> None:
        async for chunk in verified.read(storage, recorded):
            received.append(chunk)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(ObjectCorrupt):
        await receive()
    assert len(b"".join(received)) < 100


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


async def test_what_lies_under_a_prefix_is_listed_with_its_age(storage: Storage, tmp_path: Path) -> None:
    for key in ("files/one", "files/two", "jobs/x/1/log/0"):
        await storage.put_file(key, _file(tmp_path, key.encode()))
    listed = {info.key: info async for page in storage.list_objects("files/") for info in page}
    assert set(listed) == {"files/one", "files/two"}
    assert listed["files/one"].bytes == len("files/one")
    assert timedelta(seconds=-2) < listed["files/one"].age < timedelta(minutes=1)
    everything = [info.key async for page in storage.list_objects("") for info in page]
    assert sorted(everything) == ["files/one", "files/two", "jobs/x/1/log/0"]
    assert [page async for page in storage.list_objects("none/") if page] == []
    assert (await storage.stat("jobs/x/1/log/0")).bytes == len("jobs/x/1/log/0")
    with pytest.raises(ObjectMissing):
        await storage.stat("jobs/x/1/log/1")


async def test_nothing_is_unfinished_after_a_whole_put(storage: Storage, tmp_path: Path) -> None:
    await storage.put_file("a", _file(tmp_path, b"x" * (9 << 20)))
    assert await storage.remove_unfinished(older_than=timedelta(0)) == 0
    assert (await storage.stat("a")).bytes == 9 << 20


async def test_what_a_killed_put_leaves_in_a_directory_is_removed_when_it_is_old(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "objects")
    await storage.put_file("files/a", _file(tmp_path, b"x"))
    old, new = (tmp_path / "objects" / "files" / f".b.{number:016x}" for number in range(2))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert [info.key async for page in storage.list_objects("") for info in page] == ["files/a"]
    assert await storage.remove_unfinished(older_than=timedelta(days=1)) == 1
    assert [path.exists() for path in (old, new)] == [False, True]


async def test_a_trial_leaves_nothing(storage: Storage) -> None:
    await trial.run(storage)
    assert [info async for page in storage.list_objects("") for info in page] == []


def _file(directory: Path, content: bytes) -> Path:
    path = directory / "source"
    path.write_bytes(content)
    return path


async def _joined(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def test_a_file_whose_hash_is_known_outlives_its_source(storage: Storage, tmp_path: Path) -> None:
    content = bytes(range(256)) * (5 << 12)
    source, sha256 = _file(tmp_path, content), hashlib.sha256(content).hexdigest()
    link = tmp_path / "link"
    link.symlink_to(source)
    stored = await storage.put_known("bases/a", link, sha256=sha256)
    assert stored == StoredObject("bases/a", len(content), sha256)
    found = storage.local_path("bases/a")
    assert (found is not None) == isinstance(storage, LocalStorage)
    if found is not None:
        assert found.samefile(source)
        assert not found.is_symlink()
    source.unlink()
    assert await _joined(storage.read("bases/a")) == content


async def test_a_file_that_is_not_what_was_said_is_not_stored(tmp_path: Path, moto_server) -> None:
    storage = open_storage(moto_server, moto_server.new_bucket())
    with pytest.raises(ObjectCorrupt):
        await storage.put_known("bases/a", _file(tmp_path, b"x"), sha256=hashlib.sha256(b"y").hexdigest())
    with pytest.raises(ObjectMissing):
        await storage.stat("bases/a")
    await storage.close()
