from __future__ import annotations

import math

import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects import sqlite

from autoq.storage.tables import METADATA, Json

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON_VALUES)
def test_any_json_value_comes_back_whatever_its_floats(value: object) -> None:
    column, dialect = Json(), sqlite.dialect()
    stored = column.process_bind_param(value, dialect)
    assert _is_strict(stored)
    assert repr(column.process_result_value(stored, dialect)) == repr(value)


def test_no_name_collides_with_optunas() -> None:
    assert all(table.startswith("autoq_") for table in METADATA.tables)
    indices = [index.name for table in METADATA.tables.values() for index in table.indexes]
    assert all(str(name).startswith("ix_autoq_") for name in indices)


def test_every_table_but_the_searches_goes_with_its_search() -> None:
    for table in METADATA.tables.values():
        if table.name == "autoq_searches":
            continue
        (key,) = table.c.search_id.foreign_keys
        assert isinstance(key, sa.ForeignKey)
        assert key.ondelete == "CASCADE"


def _is_strict(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return all(_is_strict(child) for child in children)
