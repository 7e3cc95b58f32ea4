"""What Alembic runs for every command: migrate over the connection that the caller opened."""

from __future__ import annotations

from alembic import context

from autoq.storage.schema import VERSION_TABLE
from autoq.storage.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
