"""A finished search of a tiny network for the tests of a module."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))  # tiny_case

from tiny_case import run_autoq, write_case


@dataclass(frozen=True)
class FinishedSearch:
    """What the command left behind and said."""

    spec: Path
    home: Path
    exit_code: int
    stdout: str
    stderr: str

    @property
    def report(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.stdout)
        return content

    @property
    def log(self) -> str:
        return (self.home / "autoq.log").read_text()


# One a module: some add searches to its home, which others would then see in MLflow.
@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedSearch:
    folder = tmp_path_factory.mktemp("finished")
    spec, home = write_case(folder), folder / "home"
    ran = run_autoq("search", spec, "--home", home, "--json")
    assert ran.returncode == 0, ran.stderr
    return FinishedSearch(spec, home, ran.returncode, ran.stdout, ran.stderr)
