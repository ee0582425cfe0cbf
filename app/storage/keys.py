"""The names of objects. Ids only, never user text; the fence keeps a stale worker out of a newer one's keys."""


def uploaded_file(file_id: str) -> str:
    return f"files/{file_id}"


def imported_adapter(import_id: str) -> str:
    return f"imports/{import_id}/adapter.zip"


def job_object(job_id: str, fence: int, name: str) -> str:
    return f"jobs/{job_id}/{fence}/{name}"
