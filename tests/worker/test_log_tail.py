from pathlib import Path

import pytest

from app.db.models import LogSegment
from app.db.queries import of_job
from app.resources import Resources
from tests.worker.holding import held_job
from worker import log_tail
from worker.log_tail import LogTail


async def stored(resources: Resources, job_id: str) -> list[str]:
    async with resources.read() as session:
        segments = list(await session.scalars(of_job(LogSegment, job_id).order_by(LogSegment.number)))
    return [b"".join([chunk async for chunk in resources.storage.read(row.storage_key)]).decode() for row in segments]


async def tail(resources: Resources, tmp_path: Path, *, max_bytes: int = 1 << 20) -> LogTail:
    return LogTail(resources, await held_job(resources), tmp_path / "log", tmp_path / "scratch", max_bytes)


async def test_what_is_new_becomes_a_segment_of_whole_lines(resources: Resources, tmp_path: Path) -> None:
    log = await tail(resources, tmp_path)
    await log.flush()
    log.source.write_text("one\ntwo\nthr")
    await log.flush()
    await log.flush()
    log.source.write_text("one\ntwo\nthree\nfour")
    await log.flush(final=True)
    assert await stored(resources, log.lease.job_id) == ["one\ntwo\n", "three\nfour"]


async def test_secrets_do_not_reach_storage(resources: Resources, tmp_path: Path) -> None:
    log = await tail(resources, tmp_path)
    log.source.write_text("the key is sk-hone-abcdefghijklm and hf_abcdefghijk\n")
    await log.flush(final=True)
    assert await stored(resources, log.lease.job_id) == ["the key is sk-[redacted] and hf_[redacted]\n"]


async def test_a_secret_does_not_escape_between_two_segments(
    resources: Resources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_tail, "_SEGMENT_BYTES", 40)
    log = await tail(resources, tmp_path)
    log.source.write_text("loss 1.25 at the first step\nthe key is sk-hone-abcdefghijklm\nend\n")
    await log.flush(final=True)
    text = "".join(await stored(resources, log.lease.job_id))
    assert text == "loss 1.25 at the first step\nthe key is sk-[redacted]\nend\n"


async def test_a_line_longer_than_a_segment_is_kept(
    resources: Resources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_tail, "_SEGMENT_BYTES", 10)
    log = await tail(resources, tmp_path)
    log.source.write_text("a" * 25 + "\nb\n")
    await log.flush()
    assert "".join(await stored(resources, log.lease.job_id)) == "a" * 25 + "\nb\n"


async def test_a_long_log_is_cut_and_says_so(resources: Resources, tmp_path: Path) -> None:
    log = await tail(resources, tmp_path, max_bytes=10)
    log.source.write_text("0123456789abcdef\n")
    await log.flush(final=True)
    await log.flush(final=True)
    (text,) = await stored(resources, log.lease.job_id)
    assert text.startswith("0123456789\n[the log is cut here")
