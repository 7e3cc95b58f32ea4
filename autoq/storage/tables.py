"""Tables of the store.

Names begin with `autoq_`: Optuna keeps its study in the same database, under names of its own
(`studies`, `trials`, `alembic_version`). What is read back comes from the JSON columns; the figures
beside them are there to be filtered by. A change here needs a new file in `migrations/versions`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

_FLOAT_KEY = "$float"  # marks a number that JSON cannot write


class Json(TypeDecorator[Any]):
    """JSON that keeps infinities and NaN, which PostgreSQL refuses; None is SQL's NULL."""

    impl = sa.JSON(none_as_null=True)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """Replace floats that JSON cannot write by a tagged text."""
        return _tagged(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """Inverse of `process_bind_param`."""
        return _untagged(value)


def _tagged(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tagged(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_tagged(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT_KEY: str(float(value))}
    return value


def _untagged(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_FLOAT_KEY}:
            return float(value[_FLOAT_KEY])
        return {key: _untagged(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_untagged(item) for item in value]
    return value


METADATA = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _search_id() -> sa.Column[int]:
    return sa.Column("search_id", sa.ForeignKey("autoq_searches.id", ondelete="CASCADE"), nullable=False)


SEARCHES = sa.Table(
    "autoq_searches",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(255), nullable=False, unique=True),
    sa.Column("spec", Json, nullable=False),
    sa.Column("spec_digest", sa.String(64), nullable=False),
    sa.Column("state", sa.String(32), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),  # seconds since the epoch
    sa.Column("model_digest", sa.String(64), nullable=False),
    sa.Column("environment", Json, nullable=False),
    sa.Column("baseline", Json),
    sa.Column("preparation_s", Json, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
)

# Figures may be NULL: SQLite has no other way to keep a NaN.
MEASUREMENTS = sa.Table(
    "autoq_measurements",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    _search_id(),
    sa.Column("digest", sa.String(64), nullable=False),  # of the candidate
    sa.Column("accuracy", sa.Double),
    sa.Column("accuracy_drop", sa.Double),
    sa.Column("latency_ms", sa.Double),
    sa.Column("speedup", sa.Double),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("bundle_bytes", sa.BigInteger, nullable=False),
    sa.Column("measurement", Json, nullable=False),
    sa.UniqueConstraint("search_id", "digest"),
)

TRIALS = sa.Table(
    "autoq_trials",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    _search_id(),
    # A repeated candidate's trial shares the row that the first one measured.
    sa.Column("measurement_id", sa.ForeignKey("autoq_measurements.id", ondelete="SET NULL"), index=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("state", sa.String(32), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),  # of the candidate
    sa.Column("candidate", Json, nullable=False),
    sa.Column("params", Json, nullable=False),
    sa.Column("sampler_notes", Json, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("started_at", sa.Double, nullable=False),  # seconds since the epoch
    sa.Column("seconds", Json, nullable=False),
    sa.Column("reasons", Json, nullable=False, server_default="{}"),
    sa.UniqueConstraint("search_id", "number"),
)

FINALS = sa.Table(
    "autoq_finals",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    _search_id(),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),  # of the candidate
    sa.Column("latency_ms", sa.Double),
    sa.Column("speedup", sa.Double),
    sa.Column("final", Json, nullable=False),
    sa.UniqueConstraint("search_id", "position"),
)
