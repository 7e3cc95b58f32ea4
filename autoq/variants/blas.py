"""One thread for products and factorisations, so that equal inputs give equal bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep BLAS to one thread in the block: products that are split over threads sum in another order."""
    # SciPy brings a BLAS of its own, and a library that is loaded later is not limited. Whoever solves
    # nothing need not wait for it: a tenth of a second.
    import scipy.linalg  # noqa: F401

    with threadpool_limits(1):
        yield
