"""What people may call organizations, projects, keys and each other."""

import re

from app.errors import InvalidRequest

_MAX_CHARACTERS = 64
_ORGANIZATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,63}")
_EMAIL = re.compile(r"[^\s@<>\"(),:;\[\]\\]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.\-]{0,187}[A-Za-z0-9])?")


def require(name: str) -> str:
    """The name without spaces around it. Raises InvalidRequest."""
    name = name.strip()
    if not 1 <= len(name) <= _MAX_CHARACTERS or not name.isprintable():
        raise InvalidRequest(f"A name has 1 to {_MAX_CHARACTERS} characters that print.", param="name")
    return name


def require_organization(name: str) -> str:
    """One that may stand between colons in the name of a model."""
    if not _ORGANIZATION.fullmatch(name):
        sentence = "An organization's name has 1 to 64 letters, digits, hyphens, underscores and full stops."
        raise InvalidRequest(sentence, param="name")
    return name


def require_email(email: str) -> str:
    """In lower case, so that nobody is two people."""
    email = email.strip().lower()
    if not _EMAIL.fullmatch(email) or not email.isprintable():
        raise InvalidRequest("Expected an email address.", param="email")
    return email
