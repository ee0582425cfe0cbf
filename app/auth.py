"""Who is asking and what they may: keys, their hashes, roles, scopes, and the principal of a key. Pure functions."""

import hashlib
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

KEY_PREFIX = "sk-hone-"
ADMIN_KEY_PREFIX = "sk-admin-"


class Role(StrEnum):
    """What a person, a service account or a key is in a project; see `_OF_ROLE`."""

    OWNER = "owner"
    MEMBER = "member"
    READER = "reader"


class Scope(StrEnum):
    """What a key may do. Who may write may read."""

    FILES_READ = "files.read"
    FILES_WRITE = "files.write"
    JOBS_READ = "jobs.read"
    JOBS_WRITE = "jobs.write"
    MODELS_READ = "models.read"
    MODELS_WRITE = "models.write"
    ADMIN_READ = "admin.read"  # the project's members and keys
    ADMIN_WRITE = "admin.write"


_READS = frozenset({Scope.FILES_READ, Scope.JOBS_READ, Scope.MODELS_READ})
_WRITES = frozenset({Scope.FILES_WRITE, Scope.JOBS_WRITE, Scope.MODELS_WRITE})
_OF_ROLE = {Role.OWNER: frozenset(Scope), Role.MEMBER: _READS | _WRITES, Role.READER: _READS}
_RANK = {Role.READER: 0, Role.MEMBER: 1, Role.OWNER: 2}


@dataclass(frozen=True)
class Principal:
    """The caller of a request, as far as queries and records need to know.

    An admin key is of an organization and of no project: its `project_id` is "", which is no project's, and it may
    nothing that a scope allows.
    """

    key_id: str
    project_id: str
    organization_id: str
    role: Role = Role.OWNER
    scopes: frozenset[Scope] | None = None  # what the key is restricted to; None is no restriction

    @property
    def is_admin_key(self) -> bool:
        return not self.project_id

    @property
    def permissions(self) -> frozenset[Scope]:
        return frozenset() if self.is_admin_key else permissions(self.role, self.scopes)


def permissions(role: Role, scopes: Collection[Scope] | None) -> frozenset[Scope]:
    """What both the role and the scopes allow."""
    of_role = _OF_ROLE[role]
    return of_role if scopes is None else of_role & implied(scopes)


def implied(scopes: Collection[Scope]) -> frozenset[Scope]:
    """The scopes with what they include: who may write may read."""
    return frozenset({*scopes, *(Scope(scope.replace(".write", ".read")) for scope in scopes)})


def lesser(one: Role, other: Role) -> Role:
    return min(one, other, key=_RANK.__getitem__)


def new_key(prefix: str = KEY_PREFIX) -> str:
    """A fresh API key with 256 random bits. It is shown once and stored only as `hash_key` of it."""
    return prefix + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    """Hex SHA-256. Keys are random, so a plain hash cannot be guessed backwards; look-ups compare hashes, not keys."""
    return hashlib.sha256(key.encode("utf-8", errors="surrogatepass")).hexdigest()


def key_hint(key: str) -> str:
    """The part of a key that may be shown later, to tell keys apart."""
    return f"{key[:8]}...{key[-4:]}"
