"""Base models on the Hugging Face hub, fetched at a commit. A token, if one is needed, comes from the environment."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from worker.data.base_manifest import PATTERNS, BadBaseModel, BaseFile

_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")

# huggingface_hub is imported where it is used, because only the control side needs it, and only for such sources.


def fetch(repository: str, commit: str | None = None) -> tuple[Path, str]:
    """A directory in the Hugging Face cache with the repository's files, and its commit. Slow: it may download.

    Without a network, what the cache holds is taken. Raises BadBaseModel.
    """
    from huggingface_hub import snapshot_download

    with _told(repository):
        directory = snapshot_download(repository, revision=commit, allow_patterns=list(PATTERNS))
    return Path(directory), Path(directory).name  # a snapshot's folder is named for its commit


def verify(snapshot: Path, content: Sequence[BaseFile]) -> None:
    """Compare what lies in the cache with the hashes that the hub gave for it. Raises BadBaseModel.

    The cache names large files by their SHA-256 and others by git's hash, as the hub told them before the download.
    """
    for file in content:
        path = (snapshot / file.name).resolve()
        if _SHA256.fullmatch(path.name):
            found = file.sha256
        elif _SHA1.fullmatch(path.name):
            found = _git_hash(path)
        else:
            continue  # a cache that was made by other means
        if found != path.name:
            raise BadBaseModel(f"{file.name} is not what the hub says it is; remove {path} and try again")


def obtain(repository: str, commit: str, names: Sequence[str], directory: Path) -> Path:
    """Where the files of that commit lie: in the Hugging Face cache, or else in `directory`, downloaded.

    A download that was broken off goes on where it was. Raises BadBaseModel.
    """
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    cached = [try_to_load_from_cache(repository, name, revision=commit) for name in names]
    if all(isinstance(path, str) for path in cached):
        return Path(str(cached[0])).parent
    with _told(repository):
        snapshot_download(repository, revision=commit, allow_patterns=list(names), local_dir=directory)
    return directory


@contextmanager
def _told(repository: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        yield
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise BadBaseModel(f"{repository} could not be fetched from the hub or its cache: {error}") from error


def _git_hash(path: Path) -> str:
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    digest.update(path.read_bytes())
    return digest.hexdigest()
