"""A narrowed model is rebuilt byte for byte from what was kept and refitted; misfits are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from autoq.assembly.narrowing import Narrower, build_narrower
from autoq.calibration.moment_store import MomentStore
from autoq.core.errors import ModelError
from autoq.graph.float_model import FloatModel
from autoq.graph.replay_narrowing import changed_constants
from autoq.graph.rewriting import RewriteVectors, replay_rewrites
from autoq.testing.bench import ModelBench, build_bench, largest_difference
from autoq.testing.models import attention, inception, mlp, residual_cnn

MODELS = [residual_cnn, inception, attention, mlp]


def narrower_of(bench: ModelBench) -> Narrower:
    return build_narrower(bench.model, MomentStore(bench.folder / "moments").get, multiples=(4,))


def narrowed(bench: ModelBench) -> tuple[FloatModel, RewriteVectors]:
    narrower = narrower_of(bench)
    widths = {name: one.widths[0] for name, one in narrower.snapshots.items()}
    model = narrower.narrow(widths)
    kept = {name: np.array(units) for name, units in narrower.kept(widths).items()}
    constants = changed_constants(narrower.cut(widths).graph, model.graph)
    return model, RewriteVectors(kept=kept, constants=constants)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> ModelBench:
    return build_bench(residual_cnn(), tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize("make", MODELS)
def test_a_replay_computes_what_the_refitted_model_does_to_the_bit(make: object, tmp_path: Path) -> None:
    assert callable(make)
    bench = build_bench(make(), tmp_path)
    model, vectors = narrowed(bench)
    assert vectors.constants
    again = replay_rewrites(bench.model, vectors)
    assert [one.weight_shape for one in again.summary.layers] == [
        one.weight_shape for one in model.summary.layers
    ]
    wanted, found = (bench.run(one.artifact, optimize=False) for one in (model, again))
    assert largest_difference(found, wanted) == 0.0


def test_replays_are_equal_and_repeat_with_other_rewrites_on_top(bench: ModelBench) -> None:
    _, vectors = narrowed(bench)
    again = replay_rewrites(bench.model, vectors)
    assert replay_rewrites(bench.model, vectors).artifact.content == again.artifact.content
    rows = {"no layer": np.ones(3, np.float32)}
    with pytest.raises(ModelError, match="do not fit"):
        replay_rewrites(bench.model, replace(vectors, equalize=rows))


def test_a_bias_that_no_layer_had_is_made_again(bench: ModelBench) -> None:
    model, _ = narrowed(bench)
    graph = model.clone()
    node = next(one for one in graph.graph if one.op_type == "Conv")
    known = {str(one.name) for one in graph.graph}
    plain = graph.clone()
    bare = next(one for one in plain.graph if one.name == node.name)
    if len(bare.inputs) > 2:
        bare.replace_input_with(2, None)
    changed = changed_constants(plain, graph)
    assert list(changed) == [f"2|{node.name}"]
    assert str(node.name) in known


@pytest.mark.parametrize(
    ("kept", "constants", "reason"),
    [
        ({"nothing": np.array([0])}, {}, "no channel group 'nothing'"),
        (None, {"1|nothing": np.ones(2, np.float32)}, "no node 'nothing'"),
        (None, {"first": np.ones(2, np.float32)}, "no input of a node"),
        (None, {"99|nothing": np.ones(2, np.float32)}, "no input of a node"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_with_the_reason(
    kept: dict[str, np.ndarray] | None,  # type: ignore[type-arg]
    constants: dict[str, np.ndarray],  # type: ignore[type-arg]
    reason: str,
    bench: ModelBench,
) -> None:
    _, vectors = narrowed(bench)
    with pytest.raises(ModelError, match=reason):
        replay_rewrites(bench.model, RewriteVectors(vectors.kept if kept is None else kept, constants))


def test_a_width_of_zero_and_a_weight_of_another_shape_are_refused(bench: ModelBench) -> None:
    _, vectors = narrowed(bench)
    group, place = next(iter(vectors.kept)), next(iter(vectors.constants))
    nothing = {**vectors.kept, group: np.zeros(0, np.int64)}
    with pytest.raises(ModelError, match="may not fall to zero"):
        replay_rewrites(bench.model, replace(vectors, kept=nothing))
    other = {**vectors.constants, place: np.zeros((1, 2, 3, 4, 5), np.float32)}
    with pytest.raises(ModelError, match="no such constant"):
        replay_rewrites(bench.model, replace(vectors, constants=other))


def test_the_model_that_is_given_is_not_changed(bench: ModelBench) -> None:
    before = bench.model.artifact.digest
    replay_rewrites(bench.model, narrowed(bench)[1])
    assert (
        ir.to_proto(bench.model.graph).SerializeToString(deterministic=True) == bench.model.artifact.content
    )
    assert bench.model.artifact.digest == before
