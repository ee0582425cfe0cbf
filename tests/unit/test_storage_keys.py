"""Every key that is made is known as ours, or nothing would ever sweep it."""

import pytest

from app.ids import new_id
from app.storage import keys

PROJECT, JOB = new_id("proj_"), new_id("ftjob-")


@pytest.mark.parametrize(
    "key",
    [
        keys.uploaded_file(PROJECT, new_id("file-")),
        keys.upload_part(PROJECT, new_id("upload_"), new_id("part_")),
        keys.imported_adapter(PROJECT, new_id("import-")),
        *(
            keys.job_object(PROJECT, JOB, 12, name)
            for name in ("training.tokens", "checkpoints/7/adapter.zip", "log/0", "step_metrics.csv", "adapter.zip")
        ),
        keys.base_model_file(),
        keys.trial(),
    ],
)
def test_what_is_made_is_ours_and_is_swept(key: str) -> None:
    assert keys.require_key(key) == key
    assert keys.is_ours(key)
    assert key.startswith(keys.SWEPT)
    assert not any(keys.is_ours(odd) for odd in (f"{key}/", f"{key}/x y", f"{key}\n", f"x/{key}", f"/{key}"))
