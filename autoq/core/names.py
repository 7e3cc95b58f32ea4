"""Names: globs over layer names, and what a name may look like."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from fnmatch import fnmatchcase

# The intersection of what MLflow accepts as a parameter key and Optuna and YAML read without quotes.
_FORBIDDEN = re.compile(r"[^A-Za-z0-9_.\-]+")

SLUG_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"


def readable_name(raw: str) -> str:
    """Turn a graph name into one that every store takes: `a/b:0` becomes `a.b.0`."""
    return _FORBIDDEN.sub(".", raw).strip(".")


def unique_name(wanted: str, taken: Container[str]) -> str:
    """Return `wanted`, or `wanted_2`, `wanted_3`, ... if it is taken."""
    if wanted not in taken:
        return wanted
    number = 2
    while f"{wanted}_{number}" in taken:
        number += 1
    return f"{wanted}_{number}"


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Names that a shell glob matches, case-sensitive, in their given order."""
    return [name for name in names if fnmatchcase(name, pattern)]
