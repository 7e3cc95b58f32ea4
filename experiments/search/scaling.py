"""How preparation and suggestions grow with the number of layers, on synthetic deep models."""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from searches import Printing, SharingApp

from autoq.app import App
from autoq.spec.loading import load_spec
from autoq.testing.models import GraphBuilder

DEPTHS = (25, 50, 100, 200)
CHANNELS, SIDE, N_CLASSES = 16, 16, 10
N_EXAMPLES = 64
TRIALS = 16
# Twice the layers may take twice the time; a fixed start-up makes it less, noise a little more.
LINEAR = 1.25


def scaling(app: SharingApp, bench: Path) -> dict[str, Any]:
    """Search residual networks of 25 to 200 convolutions, each from an empty home."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for depth in DEPTHS:
            home = Path(folder) / f"home{depth}"
            spec_path = _write_case(Path(folder), depth)
            deep = App(home)
            start = time.perf_counter()
            outcome = deep.search(load_spec(spec_path), Printing())
            total_s = time.perf_counter() - start
            record, trials = outcome.record, deep.trials(f"deep-{depth}")
            deep.close()
            asked = [trial.seconds["suggest"] for trial in trials if not trial.origin.startswith("anchor ")]
            rows.append(
                {
                    "layers": depth,
                    "preparation_s": sum(record.preparation_s.values()),
                    "parts_s": dict(record.preparation_s),
                    "suggest_s": {"median": float(np.median(asked)), "max": max(asked)},
                    "total_s": total_s,
                }
            )
            print(
                f"  {depth} layers: preparation {rows[-1]['preparation_s']:.1f} s, "
                f"suggestions {np.median(asked):.2f} s",
                flush=True,
            )
    bars = []
    for what, of in (
        ("preparation", lambda row: row["preparation_s"]),
        ("a suggestion", lambda row: row["suggest_s"]["median"]),
    ):
        growth = max(of(b) / of(a) / (b["layers"] / a["layers"]) for a, b in itertools.pairwise(rows))
        bars.append(
            {
                "what": f"growth of {what}, over that of the layers",
                "figure": growth,
                "bar": f"<= {LINEAR}",
                "met": growth <= LINEAR,
            }
        )
    return {"rows": rows, "bars": bars}


def _write_case(folder: Path, depth: int) -> Path:
    """Write a model of `depth` convolutions with its data and spec."""
    onnx.save(_deep(depth), folder / f"deep{depth}.onnx")
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.standard_normal((N_EXAMPLES, 3, SIDE, SIDE)).astype(np.float32)
        for name in ("calib", "search")
    }
    np.savez(folder / "data.npz", **arrays)
    path = folder / f"deep{depth}.yaml"
    path.write_text(
        f"""version: 1
name: deep-{depth}
model: {{path: deep{depth}.onnx}}
data:
  calibration: {{npz: data.npz, inputs: {{image: calib}}}}
  search: {{npz: data.npz, inputs: {{image: search}}}}
metric: fidelity
objectives: [accuracy, latency, storage]
constraints: {{max_accuracy_drop: 0.01}}
timing: {{search_s: 0.5, final_s: 0.5}}
space: cnn
search: {{trials: {TRIALS}, seed: 0}}
"""
    )
    return path


def _deep(depth: int) -> onnx.ModelProto:
    """Residual blocks of two convolutions, `depth` layers with stem and classifier."""
    net = GraphBuilder()
    x = net.node("Relu", net.conv(net.input("image", "batch", 3, SIDE, SIDE), "stem", (3, CHANNELS)))
    layers, block = 2, 0
    while layers < depth:
        inner = net.node("Relu", net.conv(x, f"block{block}.conv1", (CHANNELS, CHANNELS)))
        layers += 1
        if layers < depth:
            inner = net.conv(inner, f"block{block}.conv2", (CHANNELS, CHANNELS))
            layers += 1
        half = net.constant(f"block{block}.gain", 0.5)
        x = net.node("Relu", net.node("Add", net.node("Mul", inner, half), x))
        block += 1
    return net.build(logits=(net.classify(x, CHANNELS), ["batch", N_CLASSES]))
