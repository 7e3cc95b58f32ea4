"""Why each trial was tried."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column; trials from before it have no reasons."""
    op.add_column("autoq_trials", sa.Column("reasons", sa.JSON, nullable=False, server_default="{}"))
