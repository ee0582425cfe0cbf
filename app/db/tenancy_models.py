"""The tables of who may do what: people, their roles in projects, service accounts, keys of organizations.

Nobody is deleted: keys and records name them. Who was removed has no membership and no key that is good.
"""

from datetime import datetime

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.auth import Role
from app.db.base import Base, ProjectRow


class User(Base):
    """A person of an organization, known by an email address in lower case. There are no passwords, only keys."""

    __tablename__ = "users"
    __table_args__ = (Index(None, "organization_id", "email", unique=True),)
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    email: Mapped[str] = mapped_column(String(254))
    name: Mapped[str] = mapped_column(String(64))
    role: Mapped[Role] = mapped_column(String(16))
    created_at: Mapped[datetime]
    removed_at: Mapped[datetime | None]


class ProjectUser(ProjectRow):
    """A member: a user's role in a project, which bounds what the user's keys may do in it."""

    __tablename__ = "project_users"
    __table_args__ = (Index(None, "user_id"),)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"), primary_key=True)
    role: Mapped[Role] = mapped_column(String(16))
    added_at: Mapped[datetime]


class ServiceAccount(ProjectRow):
    """A member of a project that is no person."""

    __tablename__ = "service_accounts"
    __table_args__ = (Index(None, "project_id", "created_at", "id"),)
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    role: Mapped[Role] = mapped_column(String(16))
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]


class AdminApiKey(Base):
    """A key that administers an organization, and can do nothing else."""

    __tablename__ = "admin_api_keys"
    __table_args__ = (Index(None, "organization_id", "created_at", "id"),)
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    name: Mapped[str] = mapped_column(String(64))
    key_hash: Mapped[str] = mapped_column(String(64), unique=True)
    hint: Mapped[str] = mapped_column(String(32))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
