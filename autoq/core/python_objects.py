"""Objects of the user's code, by reference: `file.py:name` or `package.module:name`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from autoq.core.digests import digest_bytes, digest_file
from autoq.core.errors import SpecError


def load_object(reference: str, base: Path | None = None) -> Any:
    """Import the object that a reference names.

    A file's folder, or for a package the working directory, joins the end of the import path. Loading
    the same file again gives the same module unless its content has changed.

    Args:
        reference: `file.py:name` or `package.module:name`; the name may be dotted.
        base: Folder that a relative file refers to; the working directory by default.

    Raises:
        SpecError: There is no such file, module or name, or the import raised.
    """
    place, colon, name = reference.rpartition(":")
    if not (place and colon and name):
        raise SpecError(f"{reference!r}: expected 'file.py:function' or 'package.module:function'")
    module = _load_file((base or Path()) / place) if place.endswith(".py") else _import_module(place)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise SpecError(f"{reference}: {place} has no {name!r}")
        found = getattr(found, part)
    return found


def source_digest(reference: str) -> str:
    """Hash the file of a user's function; one in a package is known by its name alone."""
    path = Path(reference.rpartition(":")[0])
    return digest_file(path) if path.is_file() else reference


def _import_module(name: str) -> ModuleType:
    # A console script, unlike `python -m`, does not look for modules where it is started.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # importing runs the user's code, which may raise anything
        hint = "a file is written file.py:function" if isinstance(error, ModuleNotFoundError) else ""
        raise SpecError(f"importing {name} raised {describe_error(error)}", hint=hint) from error


def _load_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise SpecError(f"{path}: no such file")
    name = f"autoq_user_{path.stem}_{digest_bytes(str(path).encode(), path.read_bytes())[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses, pickle and torch.export look their classes up by module name.
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the file is the user's code, which may raise anything
        del sys.modules[name]
        raise SpecError(f"{path}: importing it raised {describe_error(error)}") from error
    return module


def describe_error(error: BaseException) -> str:
    """Return the type and the text of an exception of the user's code, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
