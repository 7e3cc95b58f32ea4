"""Searches, trials, measurements and final measurements."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the first tables."""
    op.create_table(
        "autoq_searches",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("spec_digest", sa.String(64), nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("model_digest", sa.String(64), nullable=False),
        sa.Column("environment", sa.JSON, nullable=False),
        sa.Column("baseline", sa.JSON),
        sa.Column("preparation_s", sa.JSON, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_autoq_searches"),
        sa.UniqueConstraint("name", name="uq_autoq_searches_name"),
    )
    op.create_table(
        "autoq_measurements",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("search_id", sa.Integer, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("accuracy", sa.Double),
        sa.Column("accuracy_drop", sa.Double),
        sa.Column("latency_ms", sa.Double),
        sa.Column("speedup", sa.Double),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("bundle_bytes", sa.BigInteger, nullable=False),
        sa.Column("measurement", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_autoq_measurements"),
        sa.UniqueConstraint("search_id", "digest", name="uq_autoq_measurements_search_id_digest"),
        _of_search("autoq_measurements"),
    )
    op.create_table(
        "autoq_trials",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("search_id", sa.Integer, nullable=False),
        sa.Column("measurement_id", sa.Integer),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("candidate", sa.JSON, nullable=False),
        sa.Column("params", sa.JSON, nullable=False),
        sa.Column("sampler_notes", sa.JSON, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("started_at", sa.Double, nullable=False),
        sa.Column("seconds", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_autoq_trials"),
        sa.UniqueConstraint("search_id", "number", name="uq_autoq_trials_search_id_number"),
        _of_search("autoq_trials"),
        sa.ForeignKeyConstraint(
            ["measurement_id"],
            ["autoq_measurements.id"],
            name="fk_autoq_trials_measurement_id",
            ondelete="SET NULL",
        ),
    )
    op.create_index("ix_autoq_trials_measurement_id", "autoq_trials", ["measurement_id"])
    op.create_table(
        "autoq_finals",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("search_id", sa.Integer, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("latency_ms", sa.Double),
        sa.Column("speedup", sa.Double),
        sa.Column("final", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_autoq_finals"),
        sa.UniqueConstraint("search_id", "position", name="uq_autoq_finals_search_id_position"),
        _of_search("autoq_finals"),
    )


def downgrade() -> None:
    """Remove the first tables."""
    for table in ("autoq_finals", "autoq_trials", "autoq_measurements", "autoq_searches"):
        op.drop_table(table)


def _of_search(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["search_id"], ["autoq_searches.id"], name=f"fk_{table}_search_id", ondelete="CASCADE"
    )
