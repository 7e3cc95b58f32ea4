"""How soon a second search of a model starts: from the command to its first trial."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from costs import MAX_SECOND_START_S, SPECS, at_most

from autoq.app import App
from autoq.spec.loading import load_spec

N_REPEATS = 5
TIMING = {"timing.search_s": 0.5, "timing.final_s": 0.5}  # which is the baseline's too; it is not asked about


def second_search(bench: Path, home: Path) -> dict[str, Any]:
    """Search each model once, then again under other names, by the command line as a user would.

    A home that is there is gone on with: what counts is that the model has been searched in it.
    """
    found: dict[str, Any] = {}
    for name in SPECS:
        folder = home / "second_search" / name
        folder.mkdir(parents=True, exist_ok=True)
        run = f"{int(time.time())}"
        _run(bench, name, folder, f"{name}-first-{run}")
        rows = [_run(bench, name, folder, f"{name}-again-{run}-{k}") for k in range(N_REPEATS)]
        found[name] = _judged(name, rows)
    return found


def _run(bench: Path, name: str, folder: Path, search: str) -> dict[str, Any]:
    """Run a search of one trial in a new process; return when it began its trial, and the parts before."""
    spec = load_spec(bench / f"{name}.yaml", {"name": search, "search.trials": 1, **TIMING})
    path = folder / f"{search}.yaml"
    path.write_text(json.dumps(spec.to_json()))  # JSON is YAML
    command = [sys.executable, "-m", "autoq", "search", str(path), "--home", str(folder)]
    called_at = time.time()
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    app = App(folder)
    [trial], record = app.trials(search), app.record(search)
    app.close()
    assert ended.returncode in (0, 3), ended.stderr
    return {"start_s": trial.started_at - called_at, "parts_s": dict(record.preparation_s)}


def _judged(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    starts = [row["start_s"] for row in rows]
    middle = rows[int(np.argsort(starts)[len(starts) // 2])]
    parts = ", ".join(f"{part} {seconds:.2f}" for part, seconds in middle["parts_s"].items())
    print(f"  {name}, preparation of the median second search: {parts}")
    bar = at_most(
        f"{name}, s from the command to the first trial, median of {len(starts)}",
        middle["start_s"],
        MAX_SECOND_START_S,
        "s",
    )
    return {"starts_s": starts, "parts_s": middle["parts_s"], "bars": [bar]}
