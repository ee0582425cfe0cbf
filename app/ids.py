"""Prefixed, unguessable ids, and the one clock of the control plane."""

import secrets
from datetime import UTC, datetime

_ALPHABET = "0123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnpqrstuvwxyz"


def random_text(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def new_id(prefix: str) -> str:
    """`prefix` includes its separator, as at OpenAI: "file-", "ftjob-", "ftevent-", "ftckpt_"; ~140 random bits."""
    return prefix + random_text(24)


def new_request_id() -> str:
    return f"req_{secrets.token_hex(16)}"


def utc_now() -> datetime:
    return datetime.now(UTC)
