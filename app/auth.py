"""Who is asking: keys, their hashes, and the principal that a key stands for. Pure functions."""

import hashlib
import secrets
from dataclasses import dataclass

KEY_PREFIX = "sk-hone-"


@dataclass(frozen=True)
class Principal:
    """The caller of a request, as far as queries and records need to know."""

    key_id: str
    project_id: str
    organization_id: str


def new_key() -> str:
    """A fresh API key with 256 random bits. It is shown once and stored only as `hash_key` of it."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    """Hex SHA-256. Keys are random, so a plain hash cannot be guessed backwards; look-ups compare hashes, not keys."""
    return hashlib.sha256(key.encode("utf-8", errors="surrogatepass")).hexdigest()


def key_hint(key: str) -> str:
    """The part of a key that may be shown later, to tell keys apart."""
    return f"{key[:8]}...{key[-4:]}"
