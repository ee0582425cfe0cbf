"""Making one plain model of a base and an adapter, for servers that take no adapter; a child does it, with torch."""

import asyncio
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from app import environment
from app.db.models import BaseModel
from app.errors import CannotDo, InvalidRequest
from app.resources import Resources
from app.services import adapters, base_models
from app.storage.base import ObjectCorrupt, ObjectMissing
from worker.bases import Bases, BaseUnavailable
from worker.data import adapter_source, archive, base_layers
from worker.data.archive import BadArchive
from worker.data.base_model_source import BadBaseModel

_OFFLINE = {"HF_HUB_OFFLINE": "1"}


async def run(resources: Resources, *, name: str, base_id: str | None, output: Path) -> str:
    """Merge the adapter of a model or checkpoint, or a PEFT directory's, into the new or empty directory `output`.

    `base_id` names a directory's base; a model knows its own. Returns the base's id. Raises InvalidRequest,
    BadBaseModel, BadAdapter or CannotDo. Slow: the base is verified and its weights are read and written.
    """
    if not await asyncio.to_thread(_is_free, output):
        raise CannotDo(f"{output} exists and is not an empty directory; nothing was written")
    with TemporaryDirectory(dir=resources.settings.data, prefix="merge-") as scratch:
        adapter = Path(scratch) / "adapter"
        is_directory = await asyncio.to_thread(Path(name).is_dir)
        if is_directory:
            base = await _directorys_base(resources, base_id)
        else:
            base = await _fetch_adapter(resources, name, base_id, adapter)
        try:
            async with Bases(resources).use(base) as base_directory:
                if is_directory:
                    await asyncio.to_thread(_import, Path(name), adapter, base.id, base_directory)
                await _merge_in_child(base_directory, adapter, output)
        except BaseUnavailable as error:
            raise BadBaseModel(f"the base model {base.id} cannot be used here: {error.__cause__}") from error
    return base.id


def _import(source: Path, adapter: Path, base_id: str, base_directory: Path) -> None:
    layers = base_layers.linear_layers(base_directory)
    adapter_source.import_directory(source, adapter, layers_of_base=layers, base_id=base_id)


def _is_free(output: Path) -> bool:
    return not output.exists() or (output.is_dir() and not any(output.iterdir()))


async def _directorys_base(resources: Resources, base_id: str | None) -> BaseModel:
    if base_id is None:
        raise InvalidRequest("An adapter's directory needs --base: the registered base model that it was trained on.")
    async with resources.read() as session:
        return await base_models.require(session, base_id)


async def _fetch_adapter(resources: Resources, name: str, base_id: str | None, directory: Path) -> BaseModel:
    async with resources.read() as session:
        found = await adapters.find_in_any_project(session, name=name)
        if found is None:
            raise InvalidRequest(f"{name[:200]} is neither a fine-tuned model, nor a checkpoint, nor a directory.")
        base = await base_models.get_one(session, found.base_model_id)
    if base_id not in (None, base.id):
        raise InvalidRequest(f"{name} was trained on {base.id}; leave out --base.")
    packed = directory.with_suffix(".zip")
    try:
        await resources.storage.get_file(found.key, packed, sha256=found.sha256)
    except (ObjectMissing, ObjectCorrupt) as error:
        raise CannotDo(f"the adapter of {name} is damaged in storage") from error
    try:
        await asyncio.to_thread(archive.unpack, packed, directory)
    except BadArchive as error:
        raise CannotDo(f"the adapter of {name} is damaged: {error}") from error
    return base


async def _merge_in_child(base_directory: Path, adapter: Path, output: Path) -> None:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker.merge_model", "--parent-pid", str(os.getpid())),
        *("--base", str(base_directory), "--adapter", str(adapter), "--output", str(output)),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=environment.for_a_child() | _OFFLINE,
    )
    try:
        _, told = await child.communicate()
    finally:
        if child.returncode is None:  # we were told to stop
            child.kill()
            await child.wait()
    if child.returncode != 0:
        raise CannotDo(f"the merge failed: {told.decode(errors='replace').strip() or f'code {child.returncode}'}")
