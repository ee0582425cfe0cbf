"""The names of objects. Ids only, never user text; the fence keeps a stale worker out of a newer one's keys."""

import re
import secrets

_KEY = re.compile(r"[A-Za-z0-9_\-]+(?:[./][A-Za-z0-9_\-]+)*")


def require_key(key: str) -> str:
    """The key itself. Raises ValueError when it is not one that this module could have made."""
    if not _KEY.fullmatch(key):
        raise ValueError("not a storage key")
    return key


def uploaded_file(file_id: str) -> str:
    return f"files/{file_id}"


def upload_part(upload_id: str, part_id: str) -> str:
    return f"uploads/{upload_id}/{part_id}"


def imported_adapter(import_id: str) -> str:
    return f"imports/{import_id}/adapter.zip"


def job_object(job_id: str, fence: int, name: str) -> str:
    return f"jobs/{job_id}/{fence}/{name}"


def base_model_file() -> str:
    """A new one each time: what nothing names any longer is swept, and must not be named again."""
    return f"bases/{secrets.token_hex(16)}"


# Everything below these is named by a row, or belongs to nobody: see `app.services.orphans`.
SWEPT = ("bases/", "files/", "imports/", "jobs/", "trials/", "uploads/")


def trial() -> str:
    """An object that is only there to see whether storage works."""
    return f"trials/{secrets.token_hex(8)}"
