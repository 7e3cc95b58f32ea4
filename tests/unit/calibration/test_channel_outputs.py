from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from autoq.calibration import tensor_run
from autoq.calibration.channel_outputs import collect_channel_figures
from autoq.core.data import Batch, Split
from autoq.core.errors import DataError
from autoq.graph.float_model import build_float_model
from autoq.testing.models import example_feed, residual_cnn


def test_figures_are_those_of_all_positions_of_all_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_float_model(ir.from_proto(residual_cnn()))
    split = Split((Batch(example_feed(residual_cnn(), n_examples=11)),))
    name = next(str(node.outputs[0].name) for node in model.graph.graph if node.name == "block2.conv1")
    monkeypatch.setattr(tensor_run, "_MAX_BATCH", 4)
    found = collect_channel_figures(model, [name], split)[name]

    shown = model.clone()
    shown.graph.outputs[:] = [one for node in shown.graph for one in node.outputs if one.name == name]
    session = ort.InferenceSession(ir.to_proto(shown).SerializeToString())
    [array] = session.run([name], next(split.feeds(11)))
    np.testing.assert_allclose(found.mean, array.mean(axis=(0, 2, 3)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.variance, array.var(axis=(0, 2, 3)), rtol=1e-4)
    chosen = found.of(np.array([3, 5]))
    np.testing.assert_array_equal(chosen.variance, found.variance[[3, 5]])


def test_padding_of_a_static_batch_does_not_count() -> None:
    dynamic, static = (build_float_model(ir.from_proto(residual_cnn(batch=batch))) for batch in ("batch", 4))
    split = Split((Batch(example_feed(residual_cnn(), n_examples=6)),))
    name = str(next(node for node in dynamic.graph.graph if node.name == "stem").outputs[0].name)
    wanted, found = (collect_channel_figures(one, [name], split)[name] for one in (dynamic, static))
    np.testing.assert_allclose(found.mean, wanted.mean, rtol=1e-5)
    np.testing.assert_allclose(found.variance, wanted.variance, rtol=1e-5)


def test_an_empty_split_is_refused() -> None:
    model = build_float_model(ir.from_proto(residual_cnn()))
    with pytest.raises(DataError, match="empty"):
        collect_channel_figures(model, [], Split(()))
