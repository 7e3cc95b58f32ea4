"""Compare the guided search with blind samplers, and check what it believes.

    python experiments/search/run.py BENCH_FOLDER [--only quality] [--model minilm] [--home DIR]

BENCH_FOLDER holds the specs, models and data. Searches live in the home and are gone on with where they
stand, and share what they measured by the candidate's digest. Every part prints its lines and writes
them to results.json beside this script; `racing.py` writes its own part.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from handmade import handmade
from hindsight import latency_model
from quality import quality
from scaling import scaling
from searches import AS_THEY_STAND, Printing, SharingApp
from timing import blocks, timing

from autoq.app import App
from autoq.spec.loading import load_spec

MODELS = ("mobilenetv2", "resnet18", "minilm")
MAX_MINUTES = 10.0


def search_time(app: SharingApp, bench: Path) -> dict[str, Any]:
    """Search ResNet-18 for 25 guided trials as a user would, from an empty home."""

    with tempfile.TemporaryDirectory() as home:
        fresh = App(Path(home))
        spec = load_spec(bench / "resnet18.yaml", {"search.trials": 25})
        start = time.perf_counter()
        outcome = fresh.search(spec, Printing())
        minutes = (time.perf_counter() - start) / 60
        parts = dict(outcome.record.preparation_s)
        fresh.close()
    print(f"  {minutes:.1f} minutes", flush=True)
    bar = {
        "what": "resnet18: minutes of 25 guided trials from nothing",
        "figure": minutes,
        "bar": f"<= {MAX_MINUTES:g}",
        "met": minutes <= MAX_MINUTES,
    }
    return {"minutes": minutes, "preparation_s": parts, "bars": [bar]}


BY_MODEL: dict[str, Callable[[SharingApp, Path, str], dict[str, Any]]] = {
    "quality": quality,
    "latency_model": latency_model,
}
WHOLE: dict[str, Callable[[SharingApp, Path], dict[str, Any]]] = {
    "handmade": handmade,
    "timing": timing,
    "blocks": blocks,
    "search_time": search_time,
    "scaling": scaling,
}


def main() -> None:
    logging.getLogger().setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bench", type=Path)
    parser.add_argument("--only", choices=[*BY_MODEL, *WHOLE])
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--home", type=Path, default=Path("autoq-home"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json")
    parser.add_argument("--as-they-stand", action="store_true", help="judge the searches without going on")
    args = parser.parse_args()
    if args.as_they_stand:
        os.environ[AS_THEY_STAND] = "1"
    app = SharingApp(args.home)

    def keep(part: str, content: dict[str, Any]) -> None:
        results = json.loads(args.out.read_text()) if args.out.exists() else {}
        results[part] = {**results.get(part, {}), **content} if part in BY_MODEL else content
        args.out.write_text(json.dumps(results, indent=1) + "\n")

    for part in [args.only] if args.only else [*BY_MODEL, *WHOLE]:
        print(part, flush=True)
        if part in WHOLE:
            keep(part, WHOLE[part](app, args.bench))
            continue
        for model in [args.model] if args.model else MODELS:
            keep(part, {model: BY_MODEL[part](app, args.bench, model)})
    app.close()


if __name__ == "__main__":
    main()
