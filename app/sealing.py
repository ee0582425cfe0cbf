"""Secrets that must be read again, and so cannot be hashed: sealed with a key that lies elsewhere than they do.

Fernet (AES-128 in CBC mode, HMAC-SHA256) of the library `cryptography`.
"""

import base64
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet


class BadKey(Exception):
    """A key to seal with is none, or its file cannot be used. The message never holds a key."""


class CannotSeal(Exception):
    """There is no key to seal with."""


class CannotUnseal(Exception):
    """It was sealed with none of the keys, or has been changed since."""


class Sealer:
    """Seals with the first key and opens with any, so that keys can be changed one after another."""

    def __init__(self, keys: Sequence[str]) -> None:
        """Raises BadKey."""
        try:
            fernets = [_fernet(key) for key in keys]
        except ValueError:
            sentence = "a key to seal secrets with (HONE_SECRET_KEYS, secret.key) is not 32 bytes in URL-safe base64"
            raise BadKey(f"{sentence}; `hone secrets new-key` makes one") from None
        self._first = fernets[0] if fernets else None
        self._any = MultiFernet(fernets) if fernets else None

    @property
    def can_seal(self) -> bool:
        return self._first is not None

    def seal(self, secret: str) -> str:
        """Raises CannotSeal."""
        if self._first is None:
            raise CannotSeal
        return self._first.encrypt(secret.encode()).decode()

    def unseal(self, sealed: str) -> str:
        """Raises CannotUnseal."""
        return self._opened(self._any, sealed)

    def is_by_the_first_key(self, sealed: str) -> bool:
        try:
            self._opened(self._first, sealed)
        except CannotUnseal:
            return False
        return True

    @staticmethod
    def _opened(key: Fernet | MultiFernet | None, sealed: str) -> str:
        if key is None:
            raise CannotUnseal
        try:
            return key.decrypt(sealed.encode()).decode()
        except (InvalidToken, ValueError):
            raise CannotUnseal from None


def new_key() -> str:
    return Fernet.generate_key().decode()


def _fernet(key: str) -> Fernet:
    base64.b64decode(key, altchars="-_", validate=True)  # which Fernet does not: it would take two keys for one
    return Fernet(key)


def keys_in(path: Path, *, make: bool) -> list[str]:
    """The keys in a file, one a line. Where there is no file, one is made with a new key, or there are no keys.

    Of processes that make it at once, one does, and all read that one's. Raises BadKey.
    """
    try:
        if make and not path.exists():
            _make(path)
        return path.read_text(encoding="ascii").split() if path.exists() else []
    except (OSError, UnicodeError) as error:
        raise BadKey(f"the key file {path} cannot be used: {type(error).__name__}") from error


def _make(path: Path) -> None:
    """Whole or not at all, and on the disk before anything is sealed with it: a lost key is a lost secret."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="ascii") as file:  # noqa: PTH123 - it is open already
            file.write(f"{new_key()}\n")
            file.flush()
            os.fsync(descriptor)
        try:
            os.link(draft, path)
        except FileExistsError:
            return
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    finally:
        draft.unlink()
