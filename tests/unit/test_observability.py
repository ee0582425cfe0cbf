"""What never reaches a log."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from app import environment
from app.observability import hide, redact
from app.settings import Settings


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


@pytest.fixture
def hiding() -> Iterator[None]:
    yield
    hide(())


@pytest.mark.usefixtures("hiding")
def test_the_settings_secrets_are_redacted_wherever_they_turn_up() -> None:
    settings = Settings.model_validate(
        {
            "database_url": "postgresql://hone:p%2Fss-word@db/hone",
            "redis_url": "redis://:redis-password@cache:6379",
            "grader_api_key": "a grader's key",
            "secret_keys": "first-key-of-all,second-key-of-all",
            "api_key": "no-pattern-knows-this",
        }
    )
    hide(settings.secrets)
    assert redact("p/ss-word p%2Fss-word") == "[redacted] [redacted]"
    assert redact("a redis-password, first-key-of-all second-key-of-all") == "a [redacted], [redacted] [redacted]"
    assert redact("?key=a%20grader%27s%20key&x=no-pattern-knows-this") == "?key=[redacted]&x=[redacted]"
    assert redact("the database db/hone at cache:6379") == "the database db/hone at cache:6379"


@pytest.mark.usefixtures("hiding")
def test_a_password_that_is_a_common_word_leaves_the_log_readable() -> None:
    hide({"hone"})
    assert redact("hone serves") == "hone serves"


_CRASH = """
import threading
from app.observability import configure_logging, hide
hide({"a-secret-detail"})
configure_logging("info")
thread = threading.Thread(target=lambda: 1 / len("a-secret-detail"[15:]))
thread.start()
thread.join()
raise RuntimeError("it was a-secret-detail")
"""


def test_what_nobody_catches_is_told_without_secrets() -> None:
    done = subprocess.run([sys.executable, "-c", _CRASH], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "RuntimeError: it was [redacted]" in done.stderr
    assert "ZeroDivisionError" in done.stderr
    assert "a-secret-detail" not in done.stderr


def test_children_that_need_no_secret_get_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HONE_DATABASE_URL", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, f"secret of {name}")
    monkeypatch.setenv("HONE_TRAINER_THREADS", "2")
    given = environment.for_a_child()
    assert "secret of" not in " ".join(given.values())
    assert (given["HONE_TRAINER_THREADS"], given["PATH"]) == ("2", os.environ["PATH"])
    assert environment.secrets() == {"secret of AWS_SECRET_ACCESS_KEY", "secret of HF_TOKEN", "secret of WANDB_API_KEY"}
