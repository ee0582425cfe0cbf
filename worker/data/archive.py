"""Directories as one object: zip files without compression, the same bytes for the same content.

Weights do not compress; a stored zip is as fast as a copy and every tool opens it.
"""

import shutil
import zipfile
from pathlib import Path

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can hold: archives must not differ by when they were made


def pack(directory: Path, archive: Path) -> None:
    """Write every regular file below `directory` to `archive`, in the order of their names."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as bundle:
        for path in sorted(directory.rglob("*")):
            if path.is_file() and not path.is_symlink():
                entry = zipfile.ZipInfo(path.relative_to(directory).as_posix(), _EPOCH)
                entry.external_attr = 0o644 << 16
                with path.open("rb") as source, bundle.open(entry, "w", force_zip64=True) as target:
                    shutil.copyfileobj(source, target, 1 << 20)


def unpack(archive: Path, directory: Path) -> None:
    """The reverse of `pack`, for an archive that `pack` made and whose hash was verified."""
    with zipfile.ZipFile(archive) as bundle:
        bundle.extractall(directory)
