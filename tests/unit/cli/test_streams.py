from __future__ import annotations

import subprocess
import sys

NOISY = """
import os, subprocess, sys
from autoq.cli.streams import print_json, results_alone_on_stdout
with results_alone_on_stdout():
    print("from python")
    os.write(1, b"from C\\n")
    subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
print_json({"search": "demo"})
"""


def test_whatever_is_printed_during_the_work_goes_to_stderr() -> None:
    done = subprocess.run([sys.executable, "-c", NOISY], capture_output=True, text=True, check=True)
    assert done.stdout == '{\n  "search": "demo"\n}\n'
    assert sorted(done.stderr.splitlines()) == ["from C", "from a child", "from python"]
