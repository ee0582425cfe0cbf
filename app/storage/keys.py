"""The names of objects: a project's own below its id, so that a bucket's rules and reports can tell them apart.

Ids only, never user text; the fence keeps a stale worker out of a newer one's keys.
"""

import re
import secrets

_KEY = re.compile(r"[A-Za-z0-9_\-]+(?:[./][A-Za-z0-9_\-]+)*")
_PROJECT = r"projects/proj_[A-Za-z0-9]+"
# What the functions below make, and nothing else: a bucket may hold objects of others among ours.
_SHAPES = (
    rf"{_PROJECT}/files/file-[A-Za-z0-9]+",
    rf"{_PROJECT}/uploads/upload_[A-Za-z0-9]+/part_[A-Za-z0-9]+",
    rf"{_PROJECT}/imports/import-[A-Za-z0-9]+/adapter\.zip",
    rf"{_PROJECT}/jobs/ftjob-[A-Za-z0-9]+/[0-9]+/{_KEY.pattern}",
    r"bases/[0-9a-f]{32}",
    r"trials/[0-9a-f]{16}",
)
_OURS = re.compile("|".join(_SHAPES))


def require_key(key: str) -> str:
    """The key itself. Raises ValueError when it is not one that this module could have made."""
    if not _KEY.fullmatch(key):
        raise ValueError("not a storage key")
    return key


def is_ours(key: str) -> bool:
    """Whether this module makes such keys. Sweeps touch no others."""
    return _OURS.fullmatch(key) is not None


def uploaded_file(project_id: str, file_id: str) -> str:
    return f"projects/{project_id}/files/{file_id}"


def upload_part(project_id: str, upload_id: str, part_id: str) -> str:
    return f"projects/{project_id}/uploads/{upload_id}/{part_id}"


def imported_adapter(project_id: str, import_id: str) -> str:
    return f"projects/{project_id}/imports/{import_id}/adapter.zip"


def job_object(project_id: str, job_id: str, fence: int, name: str) -> str:
    return f"projects/{project_id}/jobs/{job_id}/{fence}/{name}"


def base_model_file() -> str:
    """A new one each time: what nothing names any longer is swept, and must not be named again."""
    return f"bases/{secrets.token_hex(16)}"


# Everything below these is named by a row, or belongs to nobody: see `app.services.orphans`.
SWEPT = ("bases/", "projects/", "trials/")


def trial() -> str:
    """An object that is only there to see whether storage works."""
    return f"trials/{secrets.token_hex(8)}"
