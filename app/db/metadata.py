"""All tables, whichever modules they stand in."""

from app.db import audit_models, models, retry_models, usage_models, webhook_models  # noqa: F401 - loading them enters their tables
from app.db.base import Base

ALL_TABLES = Base.metadata
