"""Which width each channel group should have: greedy descent of a divergence table against latency."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from subject import Subject

from autoq.core.artifacts import ModelArtifact
from autoq.core.data import Feed
from autoq.core.groups import ChannelGroup, Role

N_EXAMPLES = 128
N_PROFILED = 30  # runs
MAX_MEASURED = 7  # widths of a group whose divergence is measured; those between are interpolated
_FIXED = 0.12  # share of a layer's int8 time that does not shrink with its widths


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


class LatencyShares:
    """Predicts what share of latency is left: that of each layer, by the widths of its two sides."""

    def __init__(self, subject: Subject) -> None:
        whole = subject.ready.model
        names = [layer.name for layer in whole.summary.layers]
        self._shares = kernel_shares(subject.int8(whole, subject.statistics), names, subject.example())
        self._groups: dict[str, ChannelGroup] = {one.name: one for one in subject.narrower.groups}
        self._rest = 1.0 - sum(self._shares.values())

    def predict(self, widths: Mapping[str, int]) -> float:
        """Return the share of the unpruned latency that is left."""
        left: dict[str, float] = dict.fromkeys(self._shares, 1.0)
        for name, width in widths.items():
            group = self._groups[name]
            for role in Role:
                for layer in {member.layer for member in group.members if member.role is role}:
                    if layer in left:
                        left[layer] *= width / group.size
        return self._rest + sum(
            share * (_FIXED + (1.0 - _FIXED) * left[layer]) for layer, share in self._shares.items()
        )


def descend(
    table: Mapping[str, Mapping[int, float]], latency: LatencyShares
) -> Iterator[tuple[dict[str, int], float]]:
    """Yield ever narrower width vectors: at every step the one that buys most time for its divergence.

    A step may pass over several widths of a group, as divergence need not be convex in width.
    """
    widths = {name: max(found) for name, found in table.items()}
    now = latency.predict(widths)
    while True:
        best: tuple[float, str, int, float] | None = None
        for name, found in table.items():
            for width in (one for one in found if one < widths[name]):
                then = latency.predict({**widths, name: width})
                cost = max(found[width] - found[widths[name]], 1e-6)
                if then < now and (best is None or (now - then) / cost > best[0]):
                    best = (now - then) / cost, name, width, then
        if best is None:
            return
        _, name, width, now = best
        widths[name] = width
        yield dict(widths), now


def at_targets(path: Iterator[tuple[dict[str, int], float]], targets: list[float]) -> list[dict[str, Any]]:
    """The first vector of a descent that is predicted to be as fast as each target share."""
    found: list[dict[str, Any]] = []
    wanted = sorted(targets, reverse=True)
    for widths, share in path:
        while wanted and share <= wanted[0]:
            found.append({"target": wanted.pop(0), "predicted": share, "widths": widths})
        if not wanted:
            break
    return found
