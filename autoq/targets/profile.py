"""Where the time of a float model goes, by the runtime's own profiler."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from autoq.core.artifacts import ModelArtifact
from autoq.core.layers import ModelSummary, TensorSpec

_RUNS = 8


def latency_shares(model: ModelArtifact, summary: ModelSummary) -> dict[str, float]:
    """Share of kernel time that each layer takes, at batch 1 on one thread; layers that cannot be told
    apart after fusion are left out.

    Dynamic axes get 1 on the batch axis and 64 elsewhere.
    """
    rng = np.random.default_rng(0)
    feed = {spec.name: _example(spec, rng) for spec in summary.inputs}
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(model.content, options, providers=["CPUExecutionProvider"])
        for _ in range(_RUNS):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    return _shares(events, {layer.name for layer in summary.layers})


def _shares(events: list[dict[str, Any]], layers: set[str]) -> dict[str, float]:
    spent: defaultdict[str, float] = defaultdict(float)
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            spent[name.removesuffix("_kernel_time")] += float(event["dur"])
    total = sum(spent.values()) or 1.0
    shares: defaultdict[str, float] = defaultdict(float)
    for name, duration in spent.items():
        layer = next((known for known in _origins(name) if known in layers), None)
        if layer is not None:
            shares[layer] += duration / total
    return dict(shares)


def _origins(node: str) -> list[str]:
    """Names a fused node may have been called: runtimes append what they did, `fc/MatMulAddFusion`."""
    parts = node.replace("/", "_").split("_")
    return [node, *("_".join(parts[:length]) for length in range(len(parts) - 1, 0, -1))]


def _example(spec: TensorSpec, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[Any]]:
    shape = [
        axis if isinstance(axis, int) else (1 if index == 0 else 64) for index, axis in enumerate(spec.shape)
    ]
    dtype = np.dtype(spec.dtype)
    if dtype.kind in "iu":
        return np.ones(shape, dtype)
    return rng.standard_normal(shape).astype(dtype) if dtype.kind == "f" else np.ones(shape, dtype)
