"""F29: the API dies while it completes an upload: it is completed, or can be completed again, and no half file is."""

import hashlib
import os
import threading
import time
from contextlib import suppress

from openai import APIConnectionError, OpenAI
from openai.types import Upload

from tests.faults.jobs import Install

PART = os.urandom(1 << 20) * 16
PARTS = [bytes([number]) + PART for number in range(4)]
WHOLE = b"".join(PARTS)
MD5 = hashlib.md5(WHOLE, usedforsecurity=False).hexdigest()


def sent(client: OpenAI) -> tuple[Upload, list[str]]:
    """An upload whose parts are all there."""
    upload = client.uploads.create(
        bytes=len(WHOLE), filename="a.bin", mime_type="application/octet-stream", purpose="user_data"
    )
    return upload, [client.uploads.parts.create(upload.id, data=part).id for part in PARTS]


def complete(client: OpenAI, upload: Upload, part_ids: list[str]) -> Upload:
    return client.with_options(max_retries=0).uploads.complete(upload.id, part_ids=part_ids, md5=MD5)


def assert_whole(client: OpenAI, file_id: str) -> None:
    assert client.files.retrieve(file_id).bytes == len(WHOLE)
    assert client.files.content(file_id).content == WHOLE


def test_f29_the_api_is_killed_while_it_completes_an_upload(install: Install, instant: float) -> None:
    installation = install()
    with installation.serving("--api-only") as api:
        client = api.client()
        upload, part_ids = sent(client)
        began = time.monotonic()
        first = complete(client, upload, part_ids)
        usual_seconds = time.monotonic() - began
        assert first.file is not None
        upload, part_ids = sent(client)

        def try_to_complete() -> None:
            with suppress(APIConnectionError):
                complete(client, upload, part_ids)

        completing = threading.Thread(target=try_to_complete)
        completing.start()
        time.sleep(instant * usual_seconds)
        api.kill()
        completing.join(30)
        assert not completing.is_alive()
    with installation.serving("--api-only") as api:
        client = api.client()
        left = [file.id for file in client.files.list(purpose="user_data") if file.id != first.file.id]
        assert len(left) <= 1
        for file_id in left:
            assert_whole(client, file_id)
        done = complete(client, upload, part_ids)
        assert done.file is not None
        assert_whole(client, done.file.id)
        assert [done.file.id] == (left or [done.file.id])
        assert complete(client, upload, part_ids) == done
        assert len(list(client.files.list(purpose="user_data"))) == 2
        assert list((installation.data / "uploads").iterdir()) == []
