from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from autoq.assembly.assemble import layer_weights
from autoq.assembly.narrowing import Narrower, build_narrower, open_narrower
from autoq.calibration.moment_store import MomentStore
from autoq.core.choices import Criterion
from autoq.core.data import Array
from autoq.core.errors import UnknownNameError
from autoq.core.groups import Role
from autoq.graph.float_model import build_float_model
from autoq.graph.narrow import narrow
from autoq.pruning.snapshot_store import SnapshotStore
from autoq.testing.bench import ModelBench, largest_difference
from autoq.testing.models import (
    TINY_MODELS,
    GraphBuilder,
    attention,
    inception,
    mlp,
    residual_cnn,
)

BenchOf = Callable[[Callable[[], onnx.ModelProto]], ModelBench]


def narrower_of(bench: ModelBench, **settings: object) -> Narrower:
    moments = MomentStore(bench.folder / "moments")
    return build_narrower(bench.model, moments.get, multiples=(4,), **settings)  # type: ignore[arg-type]


def narrowest(narrower: Narrower) -> dict[str, int]:
    return {name: one.widths[0] for name, one in narrower.snapshots.items()}


def run(bench: ModelBench, narrower: Narrower, widths: Mapping[str, int]) -> dict[str, Array]:
    return bench.run(narrower.narrow(widths).artifact, optimize=False)


def errors(found: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    return sum(float(np.square(found[name] - array).sum()) for name, array in expected.items())


@pytest.mark.parametrize("make", TINY_MODELS.values(), ids=TINY_MODELS)
def test_every_tiny_model_runs_at_its_narrowest_with_the_shapes_it_had(
    make: Callable[[], onnx.ModelProto], bench_of: BenchOf
) -> None:
    bench = bench_of(make)
    narrower = narrower_of(bench)
    whole, narrowed = bench.run(bench.model.artifact), run(bench, narrower, narrowest(narrower))
    assert {name: array.shape for name, array in narrowed.items()} == {
        name: array.shape for name, array in whole.items()
    }
    assert all(np.isfinite(array).all() for array in narrowed.values())


@pytest.mark.parametrize(
    "make", [residual_cnn, attention, inception], ids=["residual", "attention", "concat"]
)
def test_a_refit_is_closer_than_cutting_alone_for_every_group(
    make: Callable[[], onnx.ModelProto], bench_of: BenchOf
) -> None:
    bench = bench_of(make)
    narrower = narrower_of(bench)
    whole = bench.run(bench.model.artifact, optimize=False)
    assert narrower.groups
    refitted = cut = 0.0
    for name, width in narrowest(narrower).items():
        plain = narrow(bench.model, narrower.kept({name: width}))
        refitted += errors(run(bench, narrower, {name: width}), whole)
        cut += errors(bench.run(plain.artifact, optimize=False), whole)
    assert refitted < 0.8 * cut


def test_the_error_of_a_snapshot_is_what_the_output_loses_on_the_calibration_data(bench_of: BenchOf) -> None:
    """The last hidden layer of a perceptron: what reads it is the output itself."""
    bench = bench_of(mlp)
    narrower = narrower_of(bench)
    group = next(
        one
        for one in narrower.groups
        if {member.layer for member in one.members if member.role is Role.READS} == {"fc3"}
    )
    whole = bench.run(bench.model.artifact)["logits"].astype(np.float64)
    variance = whole.var(axis=0).sum()
    for width in narrower.snapshots[group.name].widths:
        found = run(bench, narrower, {group.name: width})["logits"]
        lost = np.square(found - whole).sum(axis=1).mean() / variance
        assert narrower.snapshots[group.name].at(width).error == pytest.approx(lost, rel=0.02, abs=1e-5)
        np.testing.assert_allclose(found.mean(axis=0), whole.mean(axis=0), atol=1e-3)


def test_two_groups_meet_in_one_layer_as_rows_and_columns(bench_of: BenchOf) -> None:
    bench = bench_of(mlp)
    narrower = narrower_of(bench)
    first, second = (
        next(one.name for one in narrower.groups if one.members[0].layer == layer) for layer in ("fc1", "fc2")
    )
    widths = {first: 8, second: 4}
    both, alone = (layer_weights(narrower.narrow(one))["fc2"] for one in (widths, {first: 8}))
    rows = list(narrower.kept(widths)[second])
    transposed = bench.model.summary.layers[1].channel_axis == 1
    np.testing.assert_array_equal(both, alone[:, rows] if transposed else alone[rows])
    assert alone.size == 8 * 16


def repeating() -> onnx.ModelProto:
    """A convolution whose second four channels are its first four."""
    net = GraphBuilder(seed=3)
    x = net.input("image", "batch", 3, 12, 12)
    rng = np.random.default_rng(0)
    half, shift = rng.standard_normal((4, 3, 3, 3)) / 5, np.zeros(4)
    weight = net.constant("first.weight", np.concatenate([half, half]))
    bias = net.constant("first.bias", np.concatenate([shift, shift]))
    x = net.node("Relu", net.node("Conv", x, weight, bias, pads=[1, 1, 1, 1]))
    x = net.node("Relu", net.conv(x, "last", (8, 8)))
    return net.build(logits=(net.classify(x, 8), ("batch", 10)))


def test_channels_that_repeat_others_go_without_a_trace(bench_of: BenchOf) -> None:
    bench = bench_of(repeating)
    narrower = narrower_of(bench)
    name = next(one.name for one in narrower.groups if one.members[0].layer == "first")
    kept = narrower.kept({name: 4})[name]
    assert sorted(unit % 4 for unit in kept) == [0, 1, 2, 3]
    assert largest_difference(run(bench, narrower, {name: 4}), bench.run(bench.model.artifact)) < 0.01


def test_equal_widths_give_equal_bytes_and_full_ones_the_model_as_it_was(bench_of: BenchOf) -> None:
    bench = bench_of(residual_cnn)
    first, second = narrower_of(bench), narrower_of(bench)
    widths = narrowest(first)
    assert first.narrow(widths).summary.digest == second.narrow(widths).summary.digest
    full = {one.name: one.size for one in first.groups}
    assert first.narrow(full).artifact.content == bench.model.artifact.content


@pytest.mark.parametrize("criterion", [Criterion.MAGNITUDE, Criterion.ACTIVATION])
def test_cheap_criteria_give_snapshots_too(criterion: Criterion, bench_of: BenchOf) -> None:
    bench = bench_of(residual_cnn)
    narrower = narrower_of(bench, criterion=criterion)
    assert run(bench, narrower, narrowest(narrower))["logits"].shape[1] == 10


def test_an_unknown_group_or_width_is_refused_with_those_there_are(bench_of: BenchOf) -> None:
    narrower = narrower_of(bench_of(mlp))
    name = narrower.groups[0].name
    with pytest.raises(UnknownNameError, match=f"no channel group 'nothing'.*{name}"):
        narrower.narrow({"nothing": 4})
    with pytest.raises(UnknownNameError, match=r"has no width 5 \(its widths: 4, 8"):
        narrower.narrow({name: 5})


def test_what_was_kept_on_disk_narrows_to_the_same_bytes(bench_of: BenchOf, tmp_path: Path) -> None:
    bench, store = bench_of(residual_cnn), SnapshotStore(tmp_path)
    assert open_narrower(bench.model, store) is None
    narrower = narrower_of(bench)
    store.save(narrower.snapshots)
    opened = open_narrower(bench.model, store)
    assert opened is not None
    widths = narrowest(narrower)
    assert opened.narrow(widths).summary.digest == narrower.narrow(widths).summary.digest
    assert opened.kept_outputs(widths) == narrower.kept_outputs(widths)


def test_outputs_that_stay_are_the_rows_of_the_narrowed_weights(bench_of: BenchOf) -> None:
    bench = bench_of(residual_cnn)
    narrower = narrower_of(bench)
    widths = narrowest(narrower)
    kept = narrower.kept_outputs(widths)
    assert kept
    cut, whole = layer_weights(narrower.cut(widths)), layer_weights(bench.model)
    for layer, channels in kept.items():
        rows = whole[layer][list(channels)]
        assert len(cut[layer]) == len(rows)
        assert np.isin(cut[layer], rows).all()


def test_groups_without_second_moments_are_not_offered() -> None:
    model = build_float_model(ir.from_proto(mlp()))
    assert build_narrower(model, lambda layer: None).groups == ()
