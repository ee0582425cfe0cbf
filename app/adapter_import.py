"""Bringing in an adapter that was made elsewhere: copied, checked against its base, and registered as a model."""

import asyncio
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from app.db.models import FineTunedModel
from app.errors import InvalidRequest
from app.ids import new_id
from app.resources import Resources
from app.services import base_models, keys, models
from app.storage.keys import imported_adapter
from worker.bases import Bases, BaseUnavailable
from worker.data import adapter_source, archive
from worker.data.base_model_source import BadBaseModel

_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")  # a job's suffix may hold no more either


async def run(resources: Resources, *, name: str, base_id: str, source: Path) -> FineTunedModel:
    """Raises InvalidRequest, BadBaseModel or BadAdapter."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest(f"{name[:100]!r} is no name: up to 64 letters, digits, hyphens, underscores, full stops.")
    async with resources.write() as session:
        base = await base_models.require(session, base_id)
        project = await keys.default_project(session)
    try:
        layers = await Bases(resources).linear_layers(base)
    except BaseUnavailable as error:
        raise BadBaseModel(f"the base model {base.id} cannot be used here: {error.__cause__}") from error
    with TemporaryDirectory(dir=resources.settings.data, prefix="import-") as scratch:
        copy, packed = Path(scratch) / "adapter", Path(scratch) / "adapter.zip"
        lora = await asyncio.to_thread(
            adapter_source.import_directory, source, copy, layers_of_base=layers, base_id=base.id
        )
        await asyncio.to_thread(archive.pack, copy, packed)
        stored = await resources.storage.put_file(imported_adapter(project.id, new_id("import-")), packed)
    async with resources.write() as session:
        return await models.add_imported(session, base=base, name=name, stored=stored, lora=lora)
