"""Work that is done in a thread before it is asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """What a function returns or raises, worked out from now on; nobody has to wait for it."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._future: Future[T] = Future()
        # A daemon: a command that ends with an error does not wait for what it no longer needs.
        threading.Thread(target=self._run, args=(work,), name="autoq-ahead", daemon=True).start()

    def result(self) -> T:
        """Wait for what the function returns; raise what it raises."""
        return self._future.result()

    def _run(self, work: Callable[[], T]) -> None:
        try:
            self._future.set_result(work())
        except BaseException as error:  # whatever it is, whoever asks is told
            self._future.set_exception(error)
