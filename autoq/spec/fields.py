"""Field types the schema is made of: what a value may look like, and how it is normalised."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

_REFERENCE = re.compile(r"(?P<place>.+):(?P<name>[^\W\d]\w*(\.[^\W\d]\w*)*)")
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")

NAME_TAG = "PlainName"  # tag of the part of a union that is a plain name

Item = TypeVar("Item", bound=Hashable)
Key = TypeVar("Key", bound=str)
Value = TypeVar("Value")


class Section(BaseModel):
    """A mapping of the spec: unknown keys are refused, and a key without a value is an empty section."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_a_section(cls, value: Any) -> Any:
        return {} if value is None else value


def problem(expectation: str) -> PydanticCustomError:
    """Build the error for a value that is not what `expectation` says."""
    return PydanticCustomError("expectation", "{expectation}", {"expectation": expectation})


def mistake(text: str) -> PydanticCustomError:
    """Build the error for values that are each fine but do not go together."""
    return PydanticCustomError("mistake", "{text}", {"text": text})


def decided_by(classes: Mapping[str, type[Section]], *names: str, expectation: str) -> Discriminator:
    """Choose the class of a union by the key that only it has, or `NAME_TAG` for one of `names`.

    Tags are class names, so that an error's location can be followed into the class.
    """

    def pick(value: Any) -> str | None:
        if isinstance(value, Section):
            return type(value).__name__
        if isinstance(value, Mapping):
            return next((cls.__name__ for key, cls in classes.items() if key in value), None)
        return NAME_TAG if isinstance(value, str) and value in names else None

    return Discriminator(
        pick,
        custom_error_type="expectation",
        custom_error_message=expectation,
    )


def base_folder(info: ValidationInfo) -> Path | None:
    """Folder that relative paths refer to; None for a spec that was resolved before."""
    return (info.context or {}).get("base")


def _whole(value: object) -> object:
    # `3e6` is a whole number to whoever writes it.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _absolute(value: object, info: ValidationInfo) -> object:
    base = base_folder(info)
    if base is None or not isinstance(value, str):
        return value
    return str((base / Path(value).expanduser()).resolve())


def _reference(value: object, info: ValidationInfo) -> object:
    match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    place = match["place"] if match else ""
    if match is None or not (place.endswith(".py") or _MODULE.fullmatch(place)):
        raise problem("'file.py:function' or 'package.module:function'")
    return f"{_absolute(place, info)}:{match['name']}" if place.endswith(".py") else value


def _as_list(value: object) -> object:
    return value if isinstance(value, list | tuple) else [value]


def distinct(values: tuple[Item, ...]) -> tuple[Item, ...]:
    """Refuse entries that stand twice."""
    repeated = [value for value in values if values.count(value) > 1]
    if repeated:
        raise problem(f"no entry twice, but {str(repeated[0])!r} is")
    return values


def _from_pairs(value: object) -> object:
    return dict(value) if isinstance(value, list) and all(_is_pair(item) for item in value) else value


def _is_pair(item: object) -> bool:
    return isinstance(item, list) and len(item) == 2 and isinstance(item[0], str)


def _to_pairs(value: Mapping[str, Any]) -> list[list[Any]]:
    return [[key, _to_pairs(item) if isinstance(item, dict) else item] for key, item in value.items()]


Text = Annotated[str, Field(strict=True, min_length=1)]
Flag = Annotated[bool, Field(strict=True)]
Whole = Annotated[int, Field(strict=True), BeforeValidator(_whole)]
Count = Annotated[int, Field(strict=True, ge=1), BeforeValidator(_whole)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0)]
NotNegative = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0)]
FilePath = Annotated[Path, BeforeValidator(_absolute)]
PythonReference = Annotated[str, BeforeValidator(_reference)]

# One value may stand where a list may; never empty, nothing twice.
OneOrMore = Annotated[
    tuple[Item, ...], BeforeValidator(_as_list), Field(min_length=1), AfterValidator(distinct)
]
# A mapping whose order matters. JSON stores may sort keys, so as JSON it is a list of pairs.
Ordered = Annotated[dict[Key, Value], BeforeValidator(_from_pairs), PlainSerializer(_to_pairs)]
