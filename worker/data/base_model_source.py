"""What lies in a base model's directory, and where a source (a directory or a hub repository) has it.

Nothing here loads weights: geometry is read from config.json and the headers of the safetensors files.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.data import base_manifest, hub, tensor_headers
from worker.data.base_manifest import BadBaseModel

_MAX_CONFIG_BYTES = 1 << 20
_HUB_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.\-]*/[\w.\-]+")


@dataclass(frozen=True)
class BaseModelFacts:
    """`revision` is the hash of all files' hashes, for a directory, or the commit, for a hub repository."""

    revision: str
    num_parameters: int
    context_tokens: int


def normalize_source(source: str) -> str:
    """A directory that exists becomes an absolute path; anything else must look like owner/name on the hub."""
    if Path(source).expanduser().is_dir():
        return str(Path(source).expanduser().resolve())
    if _HUB_REPOSITORY.fullmatch(source):
        return source
    raise BadBaseModel(f"{source!r} is neither a directory on this machine nor a hub repository (owner/name)")


def fetch(source: str, revision: str | None = None) -> tuple[Path, str]:
    """The directory with the source's files, and its revision. Slow: downloads or hashes gigabytes.

    A hub repository is pinned to a commit; without a network, what the Hugging Face cache holds is taken.
    Raises BadBaseModel.
    """
    if Path(source).is_dir():
        return Path(source), directory_revision(Path(source))
    return hub.fetch(source, revision)


def inspect(directory: Path, revision: str) -> BaseModelFacts:
    """Check that a directory holds what a run needs, and measure it. Raises BadBaseModel."""
    config = _read_json(directory / "config.json")
    weights = sorted(directory.glob("*.safetensors"))
    if not weights:
        raise BadBaseModel(f"{directory} holds no .safetensors file; other formats are not loaded")
    if not (directory / "tokenizer.json").is_file():
        raise BadBaseModel(f"{directory} holds no tokenizer.json")
    if "auto_map" in config:
        raise BadBaseModel(f"{directory} needs code of its own to be loaded, which is never run")
    context = config.get("max_position_embeddings")
    if not isinstance(context, int) or context < 1:
        raise BadBaseModel(f"{directory}/config.json has no max_position_embeddings")
    return BaseModelFacts(revision, sum(_num_elements(path) for path in weights), context)


def directory_revision(directory: Path) -> str:
    """Hex SHA-256 over the names and hashes of all files that shape a run."""
    return base_manifest.digest(base_manifest.of_directory(directory))


def signature(directory: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of a directory's files: cheap to compare, for what was hashed before."""
    files = sorted(path for path in directory.iterdir() if path.is_file())
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)


def _num_elements(path: Path) -> int:
    try:
        return sum(math.prod(tensor.shape) for tensor in tensor_headers.read(path).values())
    except tensor_headers.NotSafetensors as error:
        raise BadBaseModel(str(error)) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise BadBaseModel(f"{path} has {path.stat().st_size} bytes; at most {_MAX_CONFIG_BYTES} are read")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadBaseModel(f"{path.parent} holds no {path.name}") from None
    except (ValueError, RecursionError) as error:
        raise BadBaseModel(f"{path} is not valid JSON") from error
    if not isinstance(value, dict):
        raise BadBaseModel(f"{path} is not a JSON object")
    return value
