"""Bringing a base model's files into a directory: each appears there under its name only once its hash is right."""

import asyncio
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from app.observability import redact
from app.storage.base import ObjectCorrupt, ObjectMissing, Storage
from worker.data.base_manifest import BadBaseModel, BaseFile

_HASH_BYTES = 8 << 20
_HUB = ".hub"  # beside the files, while they are downloaded
_KEPT_FROM_CHILDREN = ("HONE_", "AWS_")
Result = TypeVar("Result")


async def from_storage(storage: Storage, key: str, file: BaseFile, directory: Path) -> None:
    """Where storage is a directory on the same file system, the object gets another name instead of a copy.

    What an interrupted download has left is used. Raises BadBaseModel when the object is missing or damaged, or what
    storage and the disk raise.
    """
    target = directory / file.name
    if target.exists():  # verified before an interruption
        return
    try:
        path = storage.local_path(key)
        if path is not None and await asyncio.to_thread(can_link, [path], directory):
            await _require(path, file)
            os.link(path, target)
        else:
            await _download(storage, key, file, target)
    except (ObjectMissing, FileNotFoundError) as error:
        raise BadBaseModel(f"{file.name} is missing in storage") from error
    except ObjectCorrupt as error:
        raise BadBaseModel(f"{file.name} is damaged in storage: its hash is not the registered one") from error


async def from_hub(repository: str, commit: str, files: Sequence[BaseFile], directory: Path) -> None:
    """Fetch what is not there yet, by a child that can be ended at any time. Raises BadBaseModel or OSError."""
    lacking = [file for file in files if not (directory / file.name).exists()]
    if not lacking:
        return
    scratch = directory / _HUB
    scratch.mkdir(mode=0o700, exist_ok=True)
    found = await _ask_hub(repository, commit, [file.name for file in lacking], scratch)
    for file in lacking:
        path = found / file.name
        try:
            await _require(path, file)
        except ObjectCorrupt as error:
            path.resolve().unlink(missing_ok=True)  # so that the next try downloads it anew
            raise BadBaseModel(f"{file.name} from {repository} is not what was registered") from error
        await to_its_end(_bring, path, directory / file.name, found == scratch)


def can_link(paths: Sequence[Path | None], directory: Path) -> bool:
    """Whether all of the paths are files that can get another name in the directory."""
    try:
        device = directory.stat().st_dev
        return all(path is not None and path.stat().st_dev == device for path in paths)
    except OSError:
        return False


async def to_its_end(function: Callable[..., Result], *arguments: Any) -> Result:
    """Run it in a thread, and wait for its end even when cancelled: what it writes is guarded by a lock of ours."""
    running = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


async def _download(storage: Storage, key: str, file: BaseFile, target: Path) -> None:
    part = target.with_name(f".{file.name}.part")
    digest = hashlib.sha256()
    size = await _hash(part, digest) if part.exists() else 0
    with part.open("ab") as copy:
        # One byte more than there should be, to see an object that has grown.
        async for chunk in storage.read(key, start=size, end=file.bytes + 1):
            await to_its_end(copy.write, chunk)
            await asyncio.to_thread(digest.update, chunk)
        await to_its_end(_sync, copy)
    if digest.hexdigest() != file.sha256:
        part.unlink()
        raise ObjectCorrupt(key)
    part.rename(target)


async def _ask_hub(repository: str, commit: str, names: Sequence[str], scratch: Path) -> Path:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker.hub_download", repository, commit, str(scratch), str(os.getpid()), *names),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=_environment(),
        start_new_session=True,
    )
    try:
        said, complaints = await child.communicate()
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if child.returncode != 0:
        lines = complaints.decode(errors="replace").strip().splitlines()
        raise BadBaseModel(
            redact(lines[-1]) if lines else f"fetching {repository} ended with status {child.returncode}"
        )
    return Path(said.decode().strip().splitlines()[-1])


def _environment() -> dict[str, str]:
    """HF_TOKEN, proxies and certificates are the child's business, our own secrets are not."""
    passed_on = {name: value for name, value in os.environ.items() if not name.startswith(_KEPT_FROM_CHILDREN)}
    return {"HF_HUB_DISABLE_TELEMETRY": "1"} | passed_on


async def _require(path: Path, file: BaseFile) -> None:
    """Raises ObjectCorrupt unless the file has that content, FileNotFoundError if it is not there."""
    digest = hashlib.sha256()
    if await _hash(path, digest) != file.bytes or digest.hexdigest() != file.sha256:
        raise ObjectCorrupt(file.name)


async def _hash(path: Path, digest: "hashlib._Hash") -> int:
    """Adds the file to the digest piece by piece, so that it can be cancelled; returns its size."""
    size = 0
    with path.open("rb") as source:
        while piece := await asyncio.to_thread(source.read, _HASH_BYTES):
            await asyncio.to_thread(digest.update, piece)
            size += len(piece)
    return size


def _bring(path: Path, target: Path, is_ours: bool) -> None:
    """Move what was downloaded for us; of another's cache, link or else copy."""
    path = path.resolve(strict=True)
    if is_ours:
        with path.open("rb") as file:
            _sync(file)
        path.rename(target)
        return
    try:
        os.link(path, target)
    except OSError:  # another file system
        copy = target.with_name(f".{target.name}.part")
        shutil.copyfile(path, copy)
        with copy.open("rb") as file:
            _sync(file)
        copy.rename(target)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
