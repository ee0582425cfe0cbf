"""Settings that are more than a value: the ways to name a database."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from app.observability import redact
from app.settings import Settings


@pytest.mark.parametrize(
    ("given", "understood"),
    [
        ("postgresql://u:p@h/d?sslmode=require", "postgresql://u:p@h/d?sslmode=require"),
        ("postgres://u:p@h:5433/d", "postgresql://u:p@h:5433/d"),
        ("postgresql+asyncpg://u@h/d", "postgresql://u@h/d"),
        ("sqlite:////var/hone.db", "sqlite+aiosqlite:////var/hone.db"),
        ("sqlite+aiosqlite:////var/hone.db", "sqlite+aiosqlite:////var/hone.db"),
    ],
)
def test_a_database_may_be_named_in_several_ways(given: str, understood: str) -> None:
    assert Settings.model_validate({"database_url": given}).resolved_database_url == understood


def test_without_one_the_database_lies_in_the_data_directory(tmp_path: Path) -> None:
    assert Settings(data_directory=tmp_path).resolved_database_url == f"sqlite+aiosqlite:///{tmp_path}/hone.db"


@pytest.mark.parametrize("url", ["mysql://u:secret@h/d", "/var/hone.db", "u:secret@h", "postgresql"])
def test_another_database_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match=r"expected a URL that begins with postgresql://"):
        Settings.model_validate({"database_url": url})


def test_a_password_is_neither_shown_nor_logged() -> None:
    settings = Settings.model_validate({"database_url": "postgresql://u:a-secret@h/d"})
    assert "a-secret" not in repr(settings)
    shown = redact("cannot reach postgresql://u:a-se/cr@t@h/d and redis://:a-secret@h")
    assert shown == "cannot reach postgresql://u:[redacted]@h/d and redis://:[redacted]@h"
