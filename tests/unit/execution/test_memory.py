import os
import subprocess
import sys

import numpy as np

from autoq.execution.memory import MemoryWatch, kill_tree


def test_memory_in_use_is_seen_as_it_grows() -> None:
    watch = MemoryWatch(os.getpid())
    before = watch.resident_mb()
    block = np.ones(200 * 2**20, np.uint8)
    assert watch.resident_mb() - before > 150
    assert block.nbytes


def test_a_process_that_is_gone_uses_nothing_and_cannot_be_killed_again() -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    watch = MemoryWatch(process.pid)
    process.wait()
    assert watch.resident_mb() == 0.0
    kill_tree(process.pid)
