"""What the allocation of widths is made of: a table of divergences, and the profile of the int8 model."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from subject import Subject

from autoq.core.artifacts import ModelArtifact
from autoq.core.data import Feed
from autoq.pruning.allocation import LatencyShares

N_EXAMPLES = 128
N_PROFILED = 30  # runs
MAX_MEASURED = 7  # widths of a group whose divergence is measured; those between are interpolated


def divergences(subject: Subject) -> dict[str, dict[int, float]]:
    """KL(float ‖ one group narrowed) on calibration images, by group and width; no labels."""
    split = subject.ready.data.calibration.take(N_EXAMPLES)
    reference = subject.outputs(subject.ready.model.artifact, split)
    table = {}
    for name, snapshots in subject.narrower.snapshots.items():
        narrower = snapshots.widths[:-1]
        measured = sorted(
            {narrower[at] for at in np.linspace(0, len(narrower) - 1, MAX_MEASURED).astype(int)}
        )
        found = [
            kl(reference, subject.outputs(subject.narrower.narrow({name: width}).artifact, split))
            for width in measured
        ]
        logs = np.interp(narrower, measured, np.log(np.maximum(found, 1e-9)))
        table[name] = {**dict(zip(narrower, np.exp(logs).tolist(), strict=True)), snapshots.group.size: 0.0}
        print(f"  {name}: " + ", ".join(f"{w} {kl_:.4f}" for w, kl_ in table[name].items()), flush=True)
    return table


def kl(reference: np.ndarray, outputs: np.ndarray) -> float:
    """Mean KL of the class probabilities, in nats."""
    p, q = _log_softmax(reference), _log_softmax(outputs)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def kernel_shares(artifact: ModelArtifact, layers: Sequence[str], feed: Feed) -> dict[str, float]:
    """Share of kernel time of each layer of a quantised model, by the runtime's own profiler."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(artifact.source, options, providers=["CPUExecutionProvider"])
        for _ in range(N_PROFILED):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    runs: defaultdict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            # Fused kernels are called after their layer and a token: `layer1.0.conv1_token_5`.
            name = event["name"].removesuffix("_kernel_time").partition("_token_")[0]
            runs[name].append(float(event["dur"]))
    medians = {name: float(np.median(durations)) for name, durations in runs.items()}
    total = sum(medians.values())
    return {name: medians[name] / total for name in layers if name in medians}


def latency_shares(subject: Subject) -> LatencyShares:
    """Predict what is left of the unpruned int8 model's time, by its own profile."""
    whole = subject.ready.model
    names = [layer.name for layer in whole.summary.layers]
    shares = kernel_shares(subject.int8(whole, subject.statistics), names, subject.example())
    return LatencyShares(shares, whole.summary.layers, subject.narrower.groups)
