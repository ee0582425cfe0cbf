"""Settings that are more than a value: the ways to name a database, and whose the data directory is."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from app.observability import redact
from app.resources import open_resources
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


@pytest.mark.parametrize("name", ["database_url", "redis_url", "api_key"])
def test_what_is_wrong_is_told_without_what_was_given(name: str) -> None:
    with pytest.raises(ValidationError) as wrong:
        Settings.model_validate({name: "m://u:p-word"})
    assert "p-word" not in f"{wrong.value} {wrong.value!r}"


@pytest.mark.parametrize("name", ["s3_endpoint_url", "s3_public_url", "wandb_base_url", "grader_base_url"])
def test_addresses_that_are_shown_hold_no_password(name: str) -> None:
    Settings.model_validate({name: "https://a.example:9000/b@c", "s3_bucket": "b"})
    with pytest.raises(ValidationError):
        Settings.model_validate({name: "https://user:password@a.example", "s3_bucket": "b"})


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"s3_bucket": "b", "s3_access_key_id": "a"},
            "HONE_S3_ACCESS_KEY_ID and HONE_S3_SECRET_ACCESS_KEY go together",
        ),
        ({"s3_public_url": "https://s3.example.com"}, "HONE_S3_PUBLIC_URL is set, but HONE_S3_BUCKET is not"),
        ({"s3_bucket": "b", "s3_prefix": "a b"}, "pattern"),
        ({"orphan_seconds": 60}, "greater than or equal to 21600"),
    ],
)
def test_settings_of_s3_that_do_not_fit_together_are_refused(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Settings.model_validate(given)


def test_a_link_into_the_bucket_is_no_use_in_a_log() -> None:
    link = (
        "https://s3.example.com/b/k?X-Amz-Credential=AKIA0123%2Fus&X-Amz-Expires=300&X-Amz-Signature=0123456789abcdef"
    )
    redacted = redact(f"GET {link}")
    assert "0123456789abcdef" not in redacted
    assert "AKIA0123" not in redacted
    assert "X-Amz-Expires=300" in redacted


def test_networks_are_named_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HONE_OUTGOING_ALLOWED_NETWORKS", "10.1.0.0/16, fd00:1::/32")
    assert [str(network) for network in Settings().outgoing_allowed_networks] == ["10.1.0.0/16", "fd00:1::/32"]
    monkeypatch.setenv("HONE_OUTGOING_ALLOWED_NETWORKS", "10.1.2.3/16")
    with pytest.raises(ValidationError, match="outgoing_allowed_networks"):
        Settings()


async def test_the_data_directory_is_nobody_elses(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    directory.mkdir(mode=0o755)
    async with open_resources(Settings(data_directory=directory)):
        assert directory.stat().st_mode & 0o777 == 0o700
