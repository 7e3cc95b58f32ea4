"""Turn what pydantic finds wrong into lines a user can act on."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from autoq.core.errors import SpecError
from autoq.spec.fields import NAME_TAG, Section

Location = tuple[int | str, ...]
Model = TypeVar("Model", bound=Section)

_PLAIN_KEY = re.compile(r"[\w-]+|\*")
_SHOWN = 60  # characters of a wrong value
# pydantic's error types and what was expected, formatted with the error's context.
_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "string_pattern_mismatch": "1 to 64 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit",
    "greater_than": "a number greater than {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number less than {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dict_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
    "path_type": "the path of a file",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
}


def validate(
    cls: type[Model],
    data: Mapping[Any, Any],
    origin: str,
    *,
    base: Path | None = None,
    overridden: Collection[str] = (),
) -> Model:
    """Check plain data against a section of the schema.

    Args:
        cls: What the data should be.
        data: As read from YAML.
        origin: What error lines begin with: the file's name.
        base: Folder that relative paths refer to; None leaves paths as they are.
        overridden: Paths of keys that came from the command line, which an error then blames.

    Raises:
        SpecError: Something does not fit; one line for each problem.
    """
    try:
        return cls.model_validate(data, context={"base": base})
    except ValidationError as error:
        lines = list(dict.fromkeys(_line(cls, details, origin, overridden) for details in error.errors()))
        raise SpecError("\n".join(lines)) from error


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Suggest the nearest known name, or list them all."""
    names = [str(name) for name in known]
    nearest = difflib.get_close_matches(given, names, n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else f"expected one of {', '.join(names)}"


def _line(cls: type[Section], details: ErrorDetails, origin: str, overridden: Collection[str]) -> str:
    location = tuple(part for part in details["loc"] if part not in (*_sections(), NAME_TAG, "[key]"))
    path, what = _path(location), _what(cls, details)
    said = f"{path}: {what}" if path else what  # which then begins with a key of its own, if it has one
    source = "command line" if said.partition(":")[0] in overridden else origin
    return f"{source}: {said}"


def _what(cls: type[Section], details: ErrorDetails) -> str:
    kind, given = details["type"], details["input"]
    if kind == "missing":
        return "missing, but required"
    if kind == "extra_forbidden":
        section = _section_at(cls, details["loc"][:-1])
        return f"unknown key, {did_you_mean(str(details['loc'][-1]), section.model_fields)}"
    if kind == "mistake":
        return details["msg"]
    if kind == "invalid_key":
        return "unknown key, expected text"
    expected = _EXPECTED[kind].format(**details.get("ctx", {})) if kind in _EXPECTED else details["msg"]
    return f"expected {expected}, got {_shown(given)}"


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(map(str, value)) or 'no keys'}"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _path(location: Location) -> str:
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            key = part if _PLAIN_KEY.fullmatch(part) else f'"{part}"'
            path += f".{key}" if path else key
    return path


def _section_at(cls: type[Section], location: Location) -> type[BaseModel]:
    """Follow a location to the section that it leads into; list indices and globs stay where they are."""
    current: type[BaseModel] = cls
    for part in location:
        if part in _sections():
            current = _sections()[str(part)]
        elif part in current.model_fields:
            current = _section_within(current.model_fields[str(part)].annotation) or current
    return current


def _section_within(annotation: Any) -> type[BaseModel] | None:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    found = (_section_within(argument) for argument in get_args(annotation))
    return next((section for section in found if section is not None), None)


def _sections() -> dict[str, type[Section]]:
    """Every section by its name, which is also its tag in a union."""
    return {section.__name__: section for section in Section.__subclasses__()}
