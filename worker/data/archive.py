"""Directories as one object: zip files without compression, the same bytes for the same content.

Weights do not compress; a stored zip is as fast as a copy and every tool opens it.
"""

import re
import shutil
import stat
import zipfile
from pathlib import Path

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can hold: archives must not differ by when they were made
_COPY_BYTES = 1 << 20
_MAX_ENTRIES = 1000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,159}(/[A-Za-z0-9_][A-Za-z0-9_.\-]{0,159}){0,7}")


class BadArchive(ValueError):
    """The file is not an archive that `pack` could have made."""


def pack(directory: Path, archive: Path) -> None:
    """Write every regular file below `directory` to `archive`, in the order of their names."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as bundle:
        for path in sorted(directory.rglob("*")):
            if path.is_file() and not path.is_symlink():
                entry = zipfile.ZipInfo(path.relative_to(directory).as_posix(), _EPOCH)
                entry.external_attr = 0o644 << 16
                with path.open("rb") as source, bundle.open(entry, "w", force_zip64=True) as target:
                    shutil.copyfileobj(source, target, _COPY_BYTES)


def unpack(archive: Path, directory: Path) -> None:
    """The reverse of `pack`. Raises BadArchive, for whatever `pack` does not write, before anything is written.

    Archives come out of storage with a hash that was verified; should both be forged, no name leads out of the
    directory, nothing but plain files is made, and they take no more room than the archive.
    """
    try:
        with zipfile.ZipFile(archive) as bundle:
            entries = bundle.infolist()
            _check(entries, archive.stat().st_size)
            directory.mkdir(parents=True, exist_ok=True)
            for entry in entries:
                target = directory / entry.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with bundle.open(entry) as source, target.open("xb") as file:
                    shutil.copyfileobj(source, file, _COPY_BYTES)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, FileExistsError, RuntimeError) as error:
        raise BadArchive(f"{archive.name} is not an archive of ours: {error}") from error


def _check(entries: list[zipfile.ZipInfo], archive_bytes: int) -> None:
    if len(entries) > _MAX_ENTRIES:
        raise BadArchive(f"the archive has {len(entries)} entries; at most {_MAX_ENTRIES} are taken")
    if len({entry.filename.casefold() for entry in entries}) < len(entries):
        raise BadArchive("the archive has two entries of the same name")
    for entry in entries:
        shown = repr(entry.filename[:160])
        if not _NAME.fullmatch(entry.filename):
            raise BadArchive(f"the archive has an entry named {shown}, which is not a plain name")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise BadArchive(f"{shown} in the archive is not a plain file")
        if not 0 <= entry.header_offset < archive_bytes:
            raise BadArchive(f"{shown} is not where the archive says")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise BadArchive(f"{shown} in the archive is compressed")
    if sum(entry.file_size for entry in entries) > archive_bytes:  # parts of the file that are told of twice
        raise BadArchive("the archive holds more than its size")
