"""Measure the compression engine: what a trial costs, and what second-order methods gain.

    python experiments/engine/run.py BENCH_FOLDER [--only rounding] [--home DIR]

BENCH_FOLDER holds the specs, models and data. Every part prints its lines and writes them to
results.json beside this script; parts can be run one by one, on a machine that is otherwise idle.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accuracy
import costs
import opponents
import second_search

Part = Callable[[Path, Path], dict[str, Any]]

PARTS: dict[str, Part] = {
    "engine_time": costs.engine_time,
    "overhead": costs.overhead,
    "second_search": second_search.second_search,
    "assembly": opponents.assembly,
    "rounding": accuracy.rounding,
    "sparsity": accuracy.sparsity,
    "transformer": accuracy.transformer,
}


def main() -> None:
    logging.getLogger().setLevel(logging.ERROR)  # importing ONNX Runtime's quantiser turns INFO on
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bench", type=Path)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--home", type=Path, default=Path("autoq-home"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json")
    args = parser.parse_args()
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    for name in [args.only] if args.only else PARTS:
        print(name, flush=True)
        results[name] = PARTS[name](args.bench, args.home)
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
