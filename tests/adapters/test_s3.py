"""What only S3 can do to us: break, trickle, refuse, forget."""

import asyncio
import os
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from app.storage import trial
from app.storage.base import ObjectCorrupt, StorageRefused, StorageUnavailable
from app.storage.s3 import S3Storage
from tests.e2e import processes
from tests.servers.s3 import MotoServer, S3Server, open_storage

PARTS = 4
wait_for = partial(processes.wait_for, seconds=20)
CONTENT = os.urandom(1 << 20) * (8 * (PARTS - 1) + 1)


@pytest.fixture
def bucket(moto_server: MotoServer) -> Iterator[str]:
    yield moto_server.new_bucket()
    moto_server.order()


@pytest.fixture
async def storage(moto_server: MotoServer, bucket: str) -> AsyncIterator[S3Storage]:
    opened = open_storage(moto_server, bucket, timeout_seconds=2)
    yield opened
    await opened.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


async def test_the_hash_is_recorded_with_the_object(
    storage: S3Storage, moto_server: MotoServer, bucket: str, source: Path
) -> None:
    stored = await storage.put_file("a", source)
    client = moto_server.client()
    assert client.head_object(Bucket=bucket, Key="a")["Metadata"] == {"sha256": stored.sha256}
    client.close()


@pytest.mark.parametrize("kind", ["error", "refuse"])
async def test_a_put_that_fails_aborts_its_parts(
    storage: S3Storage, moto_server: MotoServer, bucket: str, source: Path, kind: str
) -> None:
    moto_server.order({"request": "partNumber=3", "kind": kind})
    with pytest.raises(StorageUnavailable):
        await storage.put_file("a", source)
    assert any(line.startswith("DELETE ") and "uploadId" in line for line in moto_server.requests())
    assert (moto_server.unfinished(bucket), moto_server.keys(bucket)) == ([], [])


async def test_a_put_that_is_cancelled_aborts_its_parts(
    storage: S3Storage, moto_server: MotoServer, bucket: str, source: Path
) -> None:
    moto_server.order({"request": "partNumber=3", "kind": "delay", "seconds": 0.5})
    putting = asyncio.create_task(storage.put_file("a", source))
    await asyncio.to_thread(wait_for, lambda: any("partNumber=3" in line for line in moto_server.requests()))
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    await asyncio.to_thread(wait_for, lambda: moto_server.unfinished(bucket) == [])
    assert moto_server.keys(bucket) == []


async def test_a_put_holds_few_parts_in_memory(moto_server: MotoServer, bucket: str, tmp_path: Path) -> None:
    storage = open_storage(moto_server, bucket)
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(96 << 20)
    tracemalloc.start()
    try:
        await storage.put_file("a", path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    await storage.close()
    assert peak < 48 << 20


async def test_what_trickles_is_given_up(storage: S3Storage, moto_server: MotoServer, source: Path) -> None:
    await storage.put_file("a", source)
    moto_server.order({"request": "GET", "kind": "trickle", "bytes_per_second": 1024})
    began = time.monotonic()
    with pytest.raises(StorageUnavailable):
        async for _ in storage.read("a"):
            pass
    assert time.monotonic() - began < 10


async def test_what_does_not_answer_is_given_up(storage: S3Storage, moto_server: MotoServer, source: Path) -> None:
    moto_server.order({"request": "partNumber", "kind": "delay", "seconds": 30})
    began = time.monotonic()
    with pytest.raises(StorageUnavailable):
        await storage.put_file("a", source)
    assert time.monotonic() - began < 20


async def test_a_broken_connection_is_taken_up_where_it_broke(
    storage: S3Storage, moto_server: MotoServer, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(CONTENT[: 5 << 19])
    stored = await storage.put_file("a", source)
    moto_server.order({"request": "GET", "kind": "break", "after_bytes": 1 << 20})
    copy = tmp_path / "copy"
    await storage.get_file("a", copy, sha256=stored.sha256)
    assert copy.read_bytes() == source.read_bytes()
    assert len(moto_server.requests()) > 1
    moto_server.order({"request": "GET", "kind": "break", "after_bytes": 1000})
    with pytest.raises(StorageUnavailable):
        await storage.get_file("a", copy, sha256=stored.sha256)
    assert not copy.exists()


async def test_other_bytes_than_were_put_are_seen_without_being_told_the_hash(
    storage: S3Storage, moto_server: MotoServer, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"0123456789")
    await storage.put_file("a", source)
    moto_server.order({"request": "GET", "kind": "corrupt"})
    with pytest.raises(ObjectCorrupt):
        async for _ in storage.read("a"):
            pass


async def test_a_completion_whose_answer_is_lost_has_happened(
    storage: S3Storage, moto_server: MotoServer, source: Path
) -> None:
    moto_server.order({"request": "POST", "kind": "mute", "unless": "uploads"})
    stored = await storage.put_file("a", source)
    moto_server.order()
    assert (await storage.stat("a")).bytes == stored.bytes == len(CONTENT)


async def test_what_a_killed_put_leaves_is_removed_when_it_is_old(rclone_server: S3Server) -> None:
    bucket = rclone_server.new_bucket()
    storage = open_storage(rclone_server, bucket)
    client = rclone_server.client()
    client.create_multipart_upload(Bucket=bucket, Key="projects/proj_a/files/file-a")
    assert await storage.remove_unfinished(older_than=timedelta(hours=1)) == 0
    assert await storage.remove_unfinished(older_than=timedelta(seconds=-2)) == 1
    assert client.list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []
    client.close()
    await storage.close()


async def test_a_missing_bucket_and_a_wrong_secret_are_told_from_an_outage(rclone_server: S3Server) -> None:
    bucket = rclone_server.new_bucket()
    cases = [
        (StorageRefused, "there is no bucket bucket-none", {"bucket": "bucket-none"}),
        (StorageRefused, "S3 refuses PutObject", {"secret_access_key": "another"}),
        (StorageUnavailable, "S3 does not answer", {"endpoint_url": "http://127.0.0.1:9"}),
    ]
    for kind, sentence, changes in cases:
        opened = open_storage(rclone_server, **{"bucket": bucket, **changes})
        with pytest.raises(StorageUnavailable, match=sentence) as refused:
            await trial.run(opened)
        assert type(refused.value) is kind
        await opened.close()
