"""Base models on machines that never saw their source: fetched, verified, shared, and removed to make room."""

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from app import base_import, doctor
from app.db.models import BaseModel, BaseModelFile
from app.db.queries import server_rows
from app.errors import InvalidRequest
from app.resources import Resources
from app.services import base_models
from app.storage.base import ObjectInfo, Storage
from app.storage.local import LocalStorage
from tests import factories
from tests.backends import Site
from tests.tiny import build_tiny_base
from worker import tidying
from worker.base_cache import BaseCache
from worker.bases import Bases, BaseUnavailable
from worker.data import base_model_source

ID = "acme/mine"
NOW = timedelta(seconds=-1)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def source(pristine: Path, tmp_path: Path) -> Path:
    shutil.copytree(pristine, tmp_path / "source")
    (tmp_path / "source" / "pytorch_model.bin").write_bytes(b"a pickle")
    return tmp_path / "source"


class OnAnotherDisk(LocalStorage):
    """A shared directory, from which a machine copies because it cannot link."""

    def local_path(self, key: str) -> Path | None:
        return None


def worker_on(resources: Resources, data: Path, *, links: bool = False, **settings: object) -> Bases:
    """A worker of the same installation on a machine with a data directory of its own."""
    storage: Storage = resources.storage
    if isinstance(storage, LocalStorage) and not links:
        storage = OnAnotherDisk(resources.settings.data / "objects")
    data.mkdir(exist_ok=True)
    there = resources.settings.model_copy(update={"data_directory": data, **settings})
    return Bases(replace(resources, settings=there, storage=storage))


async def register(resources: Resources, source: Path, model_id: str = ID) -> BaseModel:
    await base_import.run(resources, model_id=model_id, source=str(source))
    async with resources.read() as session:
        return await base_models.get_one(session, model_id)


async def files(resources: Resources, model_id: str = ID) -> dict[str, BaseModelFile]:
    async with resources.read() as session:
        return {row.name: row for row in await base_models.files(session, model_id)}


async def damage(resources: Resources, name: str, content: bytes = b"x") -> None:
    key = (await files(resources))[name].storage_key
    assert key is not None
    await factories.stored(resources, key, content)


def content_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("links", [True, False])
async def test_a_base_reaches_a_machine_that_never_saw_its_directory(
    resources: Resources, pristine: Path, source: Path, tmp_path: Path, links: bool
) -> None:
    base = await register(resources, source)
    shutil.rmtree(source)
    bases = worker_on(resources, tmp_path / "b", links=links)
    async with bases.use(base) as directory:
        assert content_of(directory) == content_of(pristine)
        assert directory.is_relative_to(tmp_path / "b")
    async with bases.use(base, weights=False) as small:
        expected = {name: data for name, data in content_of(pristine).items() if "safetensors" not in name}
        assert content_of(small) == expected


async def test_validation_fetches_no_weights(resources: Resources, source: Path, tmp_path: Path) -> None:
    base = await register(resources, source)
    await damage(resources, "model.safetensors")
    bases = worker_on(resources, tmp_path / "b")
    async with bases.use(base, weights=False) as directory:
        assert not list(directory.glob("*.safetensors"))
    with pytest.raises(BaseUnavailable):
        async with bases.use(base):
            pass
    assert (bases.excluded(), bases.excluded(weights=False)) == ({ID}, set())


async def test_local_storage_links_instead_of_copying(resources: Resources, source: Path, tmp_path: Path) -> None:
    if not isinstance(resources.storage, LocalStorage):
        pytest.skip("objects lie elsewhere")
    base = await register(resources, source)
    bases = worker_on(resources, tmp_path / "b", links=True, base_cache_bytes=1)
    async with bases.use(base) as directory:
        for path in directory.iterdir():
            assert path.samefile(source / path.name)


@pytest.mark.parametrize("content", [b"", b"x", None])
async def test_a_damaged_object_is_refused_by_its_hash(
    resources: Resources, pristine: Path, source: Path, tmp_path: Path, content: bytes | None
) -> None:
    good = (pristine / "model.safetensors").read_bytes()
    base = await register(resources, source)
    await damage(resources, "model.safetensors", good[:-1] + b"\x01" if content is None else content)
    bases = worker_on(resources, tmp_path / "b")
    with pytest.raises(BaseUnavailable, match=f"cannot use the base model {ID}"):
        async with bases.use(base):
            pass
    assert bases.unavailable == {ID: "model.safetensors is damaged in storage: its hash is not the registered one"}
    await damage(resources, "model.safetensors", good)
    async with bases.use(base) as directory:
        assert (directory / "model.safetensors").read_bytes() == good
    assert bases.unavailable == {}


async def test_a_missing_object_is_told(resources: Resources, source: Path, tmp_path: Path) -> None:
    base = await register(resources, source)
    await resources.storage.delete(str((await files(resources))["config.json"].storage_key))
    bases = worker_on(resources, tmp_path / "b")
    with pytest.raises(BaseUnavailable):
        async with bases.use(base, weights=False):
            pass
    assert bases.unavailable == {ID: "config.json is missing in storage"}


async def test_adding_a_base_again_repairs_it(resources: Resources, source: Path, tmp_path: Path) -> None:
    await register(resources, source)
    await resources.storage.delete(str((await files(resources))["config.json"].storage_key))
    base = await register(resources, source)
    async with worker_on(resources, tmp_path / "b").use(base) as directory:
        assert (directory / "config.json").read_bytes() == (source / "config.json").read_bytes()


async def test_what_is_edited_in_the_cache_is_fetched_anew(resources: Resources, source: Path, tmp_path: Path) -> None:
    base = await register(resources, source)
    bases = worker_on(resources, tmp_path / "b")
    async with bases.use(base) as directory:
        whole = content_of(directory)
    (directory / "config.json").write_text("{}")
    (directory / "more.json").write_text("{}")
    async with bases.use(base) as again:
        assert again == directory
        assert content_of(directory) == whole


async def test_a_download_goes_on_where_it_was(resources: Resources, source: Path, tmp_path: Path) -> None:
    base = await register(resources, source)
    weights = (source / "model.safetensors").read_bytes()
    bases = worker_on(resources, tmp_path / "b")
    await resources.storage.delete(str((await files(resources))["tokenizer_config.json"].storage_key))
    with pytest.raises(BaseUnavailable):
        async with bases.use(base):
            pass
    (partial,) = (tmp_path / "b" / "bases").glob("*/partial")
    # As a crash in the middle of the weights would leave it.
    (partial / "model.safetensors").unlink()
    (partial / ".model.safetensors.part").write_bytes(weights[:1000])
    await damage(resources, "tokenizer_config.json", (source / "tokenizer_config.json").read_bytes())
    key = str((await files(resources))["config.json"].storage_key)
    await resources.storage.delete(key)  # it is there already, and not fetched again
    async with bases.use(base) as directory:
        assert content_of(directory) == {
            name: data for name, data in content_of(source).items() if name != "pytorch_model.bin"
        }


async def test_an_interrupted_download_that_is_spoilt_begins_anew(
    resources: Resources, source: Path, tmp_path: Path
) -> None:
    base = await register(resources, source)
    bases = worker_on(resources, tmp_path / "b")
    bases_root = tmp_path / "b" / "bases"
    await damage(resources, "model.safetensors")
    with pytest.raises(BaseUnavailable):
        async with bases.use(base):
            pass
    (partial,) = bases_root.glob("*/partial")
    (partial / ".model.safetensors.part").write_bytes(bytes(100))
    await damage(resources, "model.safetensors", (source / "model.safetensors").read_bytes())
    with pytest.raises(BaseUnavailable):
        async with bases.use(base):
            pass
    async with bases.use(base) as directory:
        assert (directory / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


class Counting(OnAnotherDisk):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: list[str] = []

    async def read(self, key: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        self.reads.append(key)
        async for chunk in super().read(key, start=start, end=end):
            await asyncio.sleep(0.02)
            yield chunk


async def test_workers_of_one_machine_fetch_once(resources: Resources, source: Path, tmp_path: Path) -> None:
    if not isinstance(resources.storage, LocalStorage):
        pytest.skip("reads are counted where storage is a directory")
    base = await register(resources, source)
    storage = Counting(resources.settings.data / "objects")
    (tmp_path / "b").mkdir()
    there = resources.settings.model_copy(update={"data_directory": tmp_path / "b"})
    workers = [Bases(replace(resources, settings=there, storage=storage)) for _ in range(2)]

    async def use(bases: Bases) -> Path:
        async with bases.use(base) as directory:
            await asyncio.sleep(0.1)
            return directory

    found = await asyncio.gather(*(use(bases) for bases in workers for _ in range(2)))
    assert len(set(found)) == 1
    assert sorted(storage.reads) == sorted(str(row.storage_key) for row in (await files(resources)).values())


@pytest.fixture
def other(source: Path, tmp_path: Path) -> Callable[[int], Path]:
    """Other bases of the same size."""

    def make(number: int) -> Path:
        directory = tmp_path / f"other-{number}"
        shutil.copytree(source, directory)
        (directory / "model.safetensors").write_bytes(_renamed(source / "model.safetensors", number))
        return directory

    return make


def _renamed(weights: Path, number: int) -> bytes:
    content = bytearray(weights.read_bytes())
    content[-1] = number
    return bytes(content)


async def test_what_was_used_longest_ago_makes_room(
    resources: Resources, source: Path, tmp_path: Path, other: Callable[[int], Path]
) -> None:
    made = [await register(resources, other(number), f"base-{number}") for number in range(1, 4)]
    size = sum(row.bytes for row in (await files(resources, "base-1")).values())
    cache = BaseCache(tmp_path / "b" / "bases", 0)
    bases = worker_on(resources, tmp_path / "b", base_cache_bytes=2 * size + 10)
    places: list[Path] = []
    for base in (made[0], made[1], made[0]):
        async with bases.use(base) as directory:
            places.append(directory)
    async with bases.use(made[2]):
        assert [place.is_dir() for place in places[:2]] == [True, False]
        assert sum(entry.bytes for entry in cache.entries()) == 2 * size
        async with bases.use(made[0]):  # both are in use now: there is no room for a third
            with pytest.raises(BaseUnavailable):
                async with bases.use(made[1]):
                    pass
            assert "HONE_BASE_CACHE_BYTES" in bases.unavailable["base-2"]
    async with bases.use(made[1]):
        assert bases.unavailable == {}


async def test_a_base_that_never_fits_removes_nothing(
    resources: Resources, source: Path, tmp_path: Path, other: Callable[[int], Path]
) -> None:
    small, base = await register(resources, other(1), "small"), await register(resources, source)
    size = sum(row.bytes for row in (await files(resources)).values())
    bases = worker_on(resources, tmp_path / "b", base_cache_bytes=size)
    async with bases.use(small) as place:
        pass
    bases = worker_on(resources, tmp_path / "b", base_cache_bytes=size - 1)
    with pytest.raises(BaseUnavailable):
        async with bases.use(base):
            pass
    assert "and HONE_BASE_CACHE_BYTES allows" in bases.unavailable[ID]
    assert place.is_dir()


async def test_a_full_disk_is_told(
    resources: Resources, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = await register(resources, source)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1000))
    bases = worker_on(resources, tmp_path / "b")
    with pytest.raises(BaseUnavailable):
        async with bases.use(base):
            pass
    assert "only 0.0 GB are free" in bases.unavailable[ID]


@pytest.mark.parametrize("name", ["../escape.json", "/etc/passwd.json", "a/b.json", "..", ".json", "x.py", "x.bin", ""])
async def test_nothing_of_a_manifest_leaves_its_directory(
    resources: Resources, source: Path, tmp_path: Path, name: str
) -> None:
    base = await register(resources, source)
    async with resources.write() as session:
        query = server_rows(BaseModelFile).where(BaseModelFile.name == "config.json")
        (await session.execute(query)).scalar_one().name = name
    bases = worker_on(resources, tmp_path / "b")
    with pytest.raises(BaseUnavailable):
        async with bases.use(base):
            pass
    assert "is not the name of a base model's file" in bases.unavailable[ID]


async def test_a_link_in_the_cache_is_not_followed(resources: Resources, source: Path, tmp_path: Path) -> None:
    base = await register(resources, source)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "config.json").write_text("mine")
    bases = worker_on(resources, tmp_path / "b")
    async with bases.use(base) as directory:
        pass
    shutil.rmtree(directory)
    directory.symlink_to(precious)
    async with bases.use(base) as again:
        assert not again.is_symlink()
        assert (again / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert content_of(precious) == {"config.json": b"mine"}


async def test_an_interrupted_upload_goes_on_where_it_was(resources: Resources, source: Path) -> None:
    weights = source / "model.safetensors"
    good = weights.read_bytes()

    class Dying:
        def __init__(self, left: int) -> None:
            self.left = left

        async def stat(self, key: str) -> ObjectInfo:
            return await resources.storage.stat(key)

        async def put_known(self, key: str, path: Path, *, sha256: str):
            if self.left == 0:
                raise OSError("the machine loses power")
            self.left -= 1
            return await resources.storage.put_known(key, path, sha256=sha256)

    with pytest.raises(OSError, match="loses power"):
        await base_import.run(
            replace(resources, storage=Dying(2)),
            model_id=ID,
            source=str(source),
        )
    before = await files(resources)
    assert sum(row.is_stored for row in before.values()) == 2
    async with resources.read() as session:
        assert await base_models.find(session, ID) is None
    assert await tidying.remove_orphans(resources, older_than=NOW) == 0  # what it has put is waited for
    puts = Dying(len(before) - 2)
    await base_import.run(
        replace(resources, storage=puts),
        model_id=ID,
        source=str(source),
    )
    assert puts.left == 0
    after = await files(resources)
    assert {name: row.storage_key for name, row in after.items()} == {n: r.storage_key for n, r in before.items()}
    assert all(row.is_stored for row in after.values())
    assert after["model.safetensors"].sha256 == hashlib.sha256(good).hexdigest()


async def test_files_that_another_base_has_are_shared(
    resources: Resources, source: Path, other: Callable[[int], Path]
) -> None:
    await register(resources, source)
    first = await factories.objects(resources)
    await register(resources, source)
    assert await factories.objects(resources) == first
    await register(resources, other(1), "other")
    assert len(await factories.objects(resources)) == len(first) + 1


async def test_an_id_means_one_content(resources: Resources, source: Path, other: Callable[[int], Path]) -> None:
    await register(resources, source)
    before = await factories.objects(resources)
    with pytest.raises(InvalidRequest, match="registered already"):
        await register(resources, other(1))
    assert await factories.objects(resources) == before


async def test_objects_of_registered_bases_are_kept_and_those_of_others_swept(
    resources: Resources, source: Path, other: Callable[[int], Path]
) -> None:
    base = await register(resources, source)
    await register(resources, other(1), "other")
    before = await factories.objects(resources)
    await tidying.once(resources, older_than=NOW)
    assert await factories.objects(resources) == before
    async with resources.write() as session:
        await session.delete(await session.merge(base))
    await tidying.once(resources, older_than=timedelta(days=1))
    assert await factories.objects(resources) == before
    await tidying.once(resources, older_than=NOW)
    assert len(await factories.objects(resources)) == len(before) - 1  # the rest is shared with the other
    assert {row.storage_key for row in (await files(resources, "other")).values()} <= await factories.objects(resources)


async def test_a_base_of_before_travels_once_it_is_added_again(
    resources: Resources, source: Path, tmp_path: Path
) -> None:
    facts = base_model_source.inspect(source, base_model_source.directory_revision(source))
    async with resources.write() as session:
        await base_models.add(session, model_id=ID, source=str(source), facts=facts)
    assert await files(resources) == {}
    base = await register(resources, source)
    shutil.rmtree(source)
    async with worker_on(resources, tmp_path / "b").use(base) as directory:
        assert (directory / "model.safetensors").is_file()
    async with resources.read() as session:
        assert await base_models.linear_layers(session, ID)


async def test_layers_are_recorded_for_checks_without_weights(resources: Resources, source: Path) -> None:
    await register(resources, source)
    async with resources.read() as session:
        layers = await base_models.linear_layers(session, ID)
        assert await base_models.linear_layers(session, "nothing") is None
    hidden = json.loads((source / "config.json").read_text())["hidden_size"]
    assert layers is not None
    assert layers["model.layers.0.self_attn.q_proj"] == (hidden, hidden)


# A worker that has just begun to fetch a base, slowly.
FETCH = """
import asyncio
from dataclasses import replace
from app.resources import open_resources
from app.services import base_models
from app.settings import Settings
from tests.worker.test_bases import ID, Trickling
from worker.bases import Bases

async def main():
    async with open_resources(Settings()) as resources:
        async with resources.read() as session:
            base = await base_models.get_one(session, ID)
        async with Bases(replace(resources, storage=Trickling(resources.storage))).use(base):
            print("it is here")

asyncio.run(main())
"""


class Trickling:
    """Half a second for each chunk of an object."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def local_path(self, key: str) -> None:
        return None

    async def read(self, key: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        async for chunk in self._storage.read(key, start=start, end=end):
            yield chunk
            await asyncio.sleep(0.5)


async def test_a_worker_that_is_killed_while_it_fetches_leaves_what_the_next_goes_on_with(
    resources: Resources, site: Site, source: Path, tmp_path: Path
) -> None:
    (source / "more.json").write_bytes(b'"' + b"x" * (12 << 20) + b'"')
    base = await register(resources, source)
    data = tmp_path / "b"
    data.mkdir()
    place = {
        "HONE_DATABASE_URL": site.settings().resolved_database_url,
        "HONE_DATA_DIRECTORY": str(data),
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),  # noqa: ASYNC240
    }
    if isinstance(resources.storage, LocalStorage):
        (data / "objects").symlink_to(resources.settings.data / "objects")
    child = subprocess.Popen([sys.executable, "-c", FETCH], env=os.environ | site.environment | place)  # noqa: ASYNC220
    try:
        async with asyncio.timeout(60):
            while not (begun := [part for part in data.glob("bases/*/partial/.more.json.part") if part.stat().st_size]):
                assert child.poll() is None
                await asyncio.sleep(0.02)
    finally:
        child.kill()
        child.wait()
    left = begun[0].stat().st_size
    assert 0 < left < 12 << 20
    bases = worker_on(resources, data)
    async with bases.use(base) as directory:
        assert (directory / "more.json").read_bytes() == (source / "more.json").read_bytes()
        assert {path.name for path in directory.iterdir()} == set(await files(resources))


async def test_doctor_sees_what_lacks(resources: Resources, source: Path) -> None:
    await register(resources, source)
    found = {finding.subject: finding for finding in await doctor.examine(resources.settings)}
    assert found[f"Base model {ID}"].advice is None
    await damage(resources, "model.safetensors", b"short")
    found = {finding.subject: finding for finding in await doctor.examine(resources.settings)}
    assert "model.safetensors is damaged in storage: it has 5 bytes" in str(found[f"Base model {ID}"].advice)
