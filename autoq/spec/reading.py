"""Read a YAML file of the user's as plain data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from autoq.core.errors import SpecError


class _Loader(yaml.SafeLoader):
    """Safe loading with YAML 1.2's scalars: `no` and dates are text, 1e-3 is a number."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuse what is written twice; merged keys come later, and may be."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    problem = f"key {key.value!r} is given twice, first on line {seen[key.value]}"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen[key.value] = key.start_mark.line + 1
        return node

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        return int(str(self.construct_scalar(node)))


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]{1,18}", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole)


def read_yaml(path: Path) -> dict[Any, Any]:
    """Read one mapping from a YAML file.

    Raises:
        SpecError: There is no such file, it is not YAML text, or it holds no mapping; with the line.
    """
    text = _read_text(path)
    try:
        value = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise SpecError(f"{path}: {line}not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # Tags such as !!int on text raise ValueError; thousands of brackets exhaust the stack.
        raise SpecError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if value is None:
        raise SpecError(f"{path}: the file is empty, expected a mapping")
    if not isinstance(value, dict):
        raise SpecError(f"{path}: expected a mapping of keys to values, got {type(value).__name__}")
    return value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SpecError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise SpecError(f"{path}: is a folder, expected a YAML file") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not a text file, expected YAML in UTF-8") from error
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
