from __future__ import annotations

import subprocess
import sys

_CODE = """
import sys
import numpy as np
from autoq.variants.blas import one_blas_thread
assert "scipy.linalg" not in sys.modules  # or this would prove nothing
with one_blas_thread():
    from autoq.pruning.refit import refit_nested
    from scipy.linalg import cholesky
    cholesky(np.eye(64, dtype=np.float32))
    from threadpoolctl import threadpool_info
    print(sorted({one["num_threads"] for one in threadpool_info()}), len(threadpool_info()) > 1)
"""


def test_libraries_that_a_block_needs_are_limited_though_nothing_had_loaded_them() -> None:
    ran = subprocess.run([sys.executable, "-c", _CODE], check=True, capture_output=True, text=True)
    assert ran.stdout == "[1] True\n"
