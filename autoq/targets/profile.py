"""Where the time of a float model goes, by the runtime's own profiler."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from autoq.core.errors import ModelError
from autoq.core.layers import TensorSpec
from autoq.graph.blocks import BlockKind, find_blocks
from autoq.graph.float_model import FloatModel
from autoq.targets.onnxruntime_cpu import REJECTIONS

_RUNS = 8


def latency_shares(model: FloatModel) -> dict[str, float]:
    """Share of kernel time that each layer takes, at batch 1 on one thread.

    What a layer absorbs counts with it; a layer that was fused away is missing, and so are all layers of
    a model that refuses drawn inputs. Dynamic axes get 1 on
    the batch axis and 64 elsewhere.

    Raises:
        ModelError: The runtime refuses the model.
    """
    rng = np.random.default_rng(0)
    feed = {spec.name: _example(spec, rng) for spec in model.summary.inputs}
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            session = ort.InferenceSession(model.artifact.source, options, providers=["CPUExecutionProvider"])
        except REJECTIONS as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(f"ONNX Runtime refuses the model: {reason}") from error
        try:
            for _ in range(_RUNS):
                session.run(None, feed)
        except REJECTIONS:
            return {}  # it does not take drawn inputs of these shapes: nobody knows the shares
        events = json.loads(Path(session.end_profiling()).read_text())
    return _shares(events, _kernel_names(model))


def _kernel_names(model: FloatModel) -> dict[str, str]:
    """Layer of every name that the runtime may give its kernel: the node's, or that of what it writes."""
    names: dict[str, str] = {}
    for block in find_blocks(model.graph):
        if block.kind is BlockKind.LAYER:
            names.update(dict.fromkeys((block.name, *block.results), block.name))
    for node in model.graph.graph:
        if node.name in names:
            names.setdefault(str(node.outputs[0].name), str(node.name))
    return names


def _shares(events: list[dict[str, Any]], layers: Mapping[str, str]) -> dict[str, float]:
    runs: defaultdict[str, list[float]] = defaultdict(list)  # of each kernel
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            runs[event["name"]].append(float(event["dur"]))
    spent: defaultdict[str, float] = defaultdict(float)
    for kernel, durations in runs.items():
        # Layout and fusion passes append to the name: `relu_nchwc`, `fc/MatMulAddFusion`.
        name = kernel.removesuffix("_kernel_time").partition("/")[0].removesuffix("_nchwc")
        # The median: a single interruption once gave half of a model to one layer.
        spent[layers.get(name, "")] += float(np.median(durations))
    total = sum(spent.values()) or 1.0
    return {layer: duration / total for layer, duration in spent.items() if layer}


def _example(spec: TensorSpec, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[Any]]:
    shape = [
        axis if isinstance(axis, int) else (1 if index == 0 else 64) for index, axis in enumerate(spec.shape)
    ]
    dtype = np.dtype(spec.dtype)
    if dtype.kind in "iu":
        return np.ones(shape, dtype)
    return rng.standard_normal(shape).astype(dtype) if dtype.kind == "f" else np.ones(shape, dtype)
