"""All tables, whichever modules they stand in."""

from app.db import (  # noqa: F401 - loading them enters their tables
    audit_models,
    limit_models,
    models,
    retry_models,
    usage_models,
    webhook_models,
)
from app.db.base import Base

ALL_TABLES = Base.metadata
