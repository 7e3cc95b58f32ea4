"""The one pass over calibration data that collects every statistic."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from autoq.calibration.statistics import Statistics
from autoq.calibration.summaries import TensorSummary, summarize
from autoq.core.data import Array, Feed, Split
from autoq.core.errors import DataError, ModelError
from autoq.graph.float_model import FloatModel, serialize

# Bytes of activations alive at once: what the batch size of the pass is chosen by.
_ACTIVATION_BUDGET = 256 * 2**20
_MAX_BATCH = 32
_REFUSALS = (
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
)


def collect_statistics(
    model: FloatModel,
    values: Sequence[str],
    calibration: Split,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Statistics:
    """Run the calibration data once through the float model and summarise the named tensors.

    Memory does not grow with the number of batches.

    Raises:
        DataError: The runtime refuses a batch, or there is none.
        ModelError: The runtime refuses the model, or an activation is NaN or infinite.
    """
    started = time.perf_counter()
    session, shown = _open(model, values)
    batch_axis = model.summary.inputs[0].shape[0] if model.summary.inputs[0].shape else None
    size = batch_axis if isinstance(batch_axis, int) else _batch_size(session, shown, calibration)
    summaries: dict[str, TensorSummary] = {}
    done = 0
    for feed in calibration.feeds(size):
        n_real = len(next(iter(feed.values())))
        full = pad_batch(feed, batch_axis) if isinstance(batch_axis, int) else feed
        for name, array in zip(shown, _run(session, shown, full), strict=True):
            # Padding repeats real rows: it may not count twice, so it is cut where the axis allows.
            is_padded = full is not feed and array.ndim > 0 and len(array) == size
            rows = array[:n_real] if is_padded else array
            _add(summaries, name, rows)
        for name in values:
            if name in feed:
                _add(summaries, name, feed[name])
        done += n_real
        on_progress(done, calibration.n_examples)
    if not summaries:
        raise DataError("the calibration split is empty")
    return Statistics(summaries, done, time.perf_counter() - started)


def pad_batch(feed: Feed, size: int) -> Feed:
    """Repeat the last row until the batch has `size` rows, for models with a static batch axis."""
    return {name: _padded(array, size) for name, array in feed.items()}


def _padded(array: Array, size: int) -> Array:
    missing = size - len(array)
    return array if missing <= 0 else np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])


def _open(model: FloatModel, values: Sequence[str]) -> tuple[ort.InferenceSession, list[str]]:
    """Open the float model with the wanted tensors as extra outputs."""
    graph = model.clone()
    inputs = {value.name for value in graph.graph.inputs}
    present = {value.name for value in graph.graph.outputs}
    produced = {output.name: output for node in graph.graph for output in node.outputs}
    wanted = [name for name in values if name not in inputs]
    graph.graph.outputs.extend(produced[name] for name in wanted if name not in present)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    content = serialize(graph).content
    try:
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except _REFUSALS as error:
        raise ModelError(f"ONNX Runtime refuses the float model: {_one_line(error)}") from error
    return session, wanted


def _batch_size(session: ort.InferenceSession, shown: list[str], calibration: Split) -> int:
    first = next(calibration.feeds(1), None)
    if first is None:
        raise DataError("the calibration split is empty")
    per_example = sum(array.nbytes for array in _run(session, shown, first))
    return int(np.clip(_ACTIVATION_BUDGET // max(per_example, 1), 1, _MAX_BATCH))


def _run(session: ort.InferenceSession, shown: list[str], feed: Feed) -> list[Array]:
    try:
        outputs: list[Array] = session.run(shown, feed)
    except _REFUSALS as error:
        raise DataError(f"the model refuses the calibration data: {_one_line(error)}") from error
    return outputs


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _add(summaries: dict[str, TensorSummary], name: str, array: Array) -> None:
    if array.size == 0:
        return
    try:
        fresh = summarize(array)
    except ValueError as error:
        raise ModelError(f"tensor {name!r} has {error} on the calibration data") from error
    summaries[name] = summaries[name].merge(fresh) if name in summaries else fresh
