from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from autoq.core.tensor_files import save_tensors

TENSORS = {"weight": np.arange(500, dtype=np.float32), "zero_point": np.array(3, np.uint8)}


def test_what_is_written_is_read_again_by_whoever_may(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_tensors(TENSORS, tmp_path / "tensors", {"layout": "plain"})
    finally:
        os.umask(before)
    found = load_file(tmp_path / "tensors")
    assert found.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        assert found[name].tobytes() == array.tobytes()
    assert (tmp_path / "tensors").stat().st_mode & 0o777 == 0o640


def test_a_full_disk_is_an_os_error(tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(tmp_path / "tensors")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def fill_a_full_disk(path: Path) -> None:
    """Write where no file may become longer than a few bytes, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    with pytest.raises(OSError, match="tensors") as caught:
        save_tensors(TENSORS, path)
    assert caught.value.errno == errno.EFBIG


if __name__ == "__main__":
    fill_a_full_disk(Path(sys.argv[1]))
