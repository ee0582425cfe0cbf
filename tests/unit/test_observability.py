"""What never reaches a log."""

import pytest

from app.observability import redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("the key sk-hone-abcdefgh is wrong", "the key sk-[redacted] is wrong"),
        ("redis://:pass%2Fword@host:6379/0 is away", "redis://:[redacted]@host:6379/0 is away"),
        ("postgresql+asyncpg://hone:p@ss:word@db/hone", "postgresql+asyncpg://hone:[redacted]@db/hone"),
        (
            "see http://127.0.0.1:8000/v1, or write to a@b.example",
            "see http://127.0.0.1:8000/v1, or write to a@b.example",
        ),
    ],
)
def test_secrets_are_redacted(text: str, shown: str) -> None:
    assert redact(text) == shown
