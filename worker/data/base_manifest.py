"""Which files a base model consists of, by name, size and hash: what is uploaded, fetched and verified.

A manifest comes out of a database or from a hub, so nothing in it is believed: names are plain names of files that
may shape a run, and numbers are bounded.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

# The files that shape a run. Other formats of the same weights, pickles among them, are left alone.
PATTERNS = ("*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt", "vocab.txt")
_WEIGHTS = "*.safetensors"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,159}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_FILES = 2000
_MAX_BYTES = 8 << 40


class BadBaseModel(Exception):
    """The source cannot serve as a base model; the message is for the person who named it."""


@dataclass(frozen=True)
class BaseFile:
    """Raises BadBaseModel for what cannot be the file of a base model."""

    name: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not is_wanted(self.name):
            raise BadBaseModel(f"{self.name[:160]!r} is not the name of a base model's file")
        if not 0 <= self.bytes <= _MAX_BYTES:
            raise BadBaseModel(f"{self.name} cannot have {self.bytes} bytes")
        if not _SHA256.fullmatch(self.sha256):
            raise BadBaseModel(f"{self.name} has no SHA-256")

    @property
    def is_weights(self) -> bool:
        return fnmatchcase(self.name, _WEIGHTS)


def is_wanted(name: str) -> bool:
    """Whether a file of that name belongs to a base model. A name with a directory in it never does."""
    return _NAME.fullmatch(name) is not None and any(fnmatchcase(name, pattern) for pattern in PATTERNS)


def checked(files: Iterable[BaseFile]) -> list[BaseFile]:
    """The files by name. Raises BadBaseModel if they cannot be one base model's."""
    found = sorted(files, key=lambda file: file.name)
    if len(found) > _MAX_FILES:
        raise BadBaseModel(f"there are {len(found)} files; at most {_MAX_FILES} are taken")
    if len({file.name.casefold() for file in found}) < len(found):
        raise BadBaseModel("two files have the same name")
    return found


def of_directory(directory: Path) -> list[BaseFile]:
    """The manifest of the files in a directory, hashed: slow. OSError, BadBaseModel."""
    paths = sorted(path for path in directory.iterdir() if is_wanted(path.name) and path.is_file())
    found: list[BaseFile] = []
    for path in paths:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            found.append(BaseFile(path.name, file.tell(), sha256))
    return checked(found)


def digest(files: Iterable[BaseFile]) -> str:
    """Hex SHA-256 over the names and hashes of the files."""
    total = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        total.update(f"{file.name}\0{file.sha256}\n".encode())
    return total.hexdigest()
