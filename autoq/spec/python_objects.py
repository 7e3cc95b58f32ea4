"""Functions of the user's, named in a spec."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from autoq.core.errors import AutoqError, SpecError, UserError
from autoq.core.python_objects import describe_error, load_object


def load_function(reference: str, *, where: str) -> Callable[..., Any]:
    """Import the callable that a resolved reference names.

    Args:
        reference: `/folder/file.py:name` or `package.module:name`, as a loaded spec holds it.
        where: Path of the key, for the error.

    Raises:
        SpecError: There is no such file, module or name, the import raised, or it cannot be called.
    """
    try:
        function = load_object(reference)
    except SpecError as error:
        raise SpecError(f"{where}: {error.args[0]}", hint=error.hint) from error
    if not callable(function):
        raise SpecError(f"{where}: expected {reference} to be a function, got {function!r:.60}")
    loaded: Callable[..., Any] = function
    return loaded


@contextmanager
def running_user_code(reference: str, *, where: str, error_type: type[UserError]) -> Iterator[None]:
    """Turn whatever the user's code raises into one line that names it.

    Raises:
        UserError: Of `error_type`; the code raised.
    """
    try:
        yield
    except AutoqError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise error_type(f"{where}: {reference} raised {describe_error(error)}") from error
