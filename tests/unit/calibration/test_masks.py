from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from autoq.calibration import collect, tensor_run
from autoq.calibration.collect import collect_statistics
from autoq.calibration.masks import Flags, Mask, most_padded, padding_of, possible_masks
from autoq.calibration.moment_store import MomentStore
from autoq.calibration.tensor_run import find_masks
from autoq.core.data import Affine, Array, Batch, Feed, Split
from autoq.graph.blocks import find_blocks, quantizable_values
from autoq.graph.float_model import FloatModel, build_float_model
from autoq.testing.models import N_TOKENS, GraphBuilder, sentence_embedder

LENGTHS = np.array([3, 9, 5, 9, 1, 12, 7, 2, 9, 4, 6])
PAD = 23  # a token that nothing else is


def sentences(lengths: Array = LENGTHS, *, seed: int = 0) -> Feed:
    """Tokens that are padded to the longest, and the mask that says so."""
    tokens = np.random.default_rng(seed).integers(0, PAD, (len(lengths), max(lengths)))
    mask = (np.arange(max(lengths)) < lengths[:, None]).astype(np.int64)
    return {"tokens": np.where(mask, tokens, PAD), "mask": mask}


def split_of(*feeds: Feed) -> Split:
    return Split(tuple(Batch(feed) for feed in feeds))


def unpadded(feed: Feed) -> Split:
    """One example a batch, without its padding."""
    lengths = feed["mask"].sum(axis=1)
    return split_of(
        *(
            {name: array[at : at + 1, :length] for name, array in feed.items()}
            for at, length in enumerate(lengths)
        )
    )


def model_of(proto: onnx.ModelProto) -> FloatModel:
    return build_float_model(ir.from_proto(proto))


def masks_of(make: Callable[[], onnx.ModelProto], feed: Feed) -> list[tuple[str, float]]:
    return [(mask.name, mask.marker) for mask in find_masks(model_of(make()), split_of(feed))]


def test_either_value_of_an_input_of_two_may_mark_padding_in_those_of_its_positions() -> None:
    feed = sentences() | {
        "vectors": np.ones((11, 12, 3), np.float32),
        "frames": np.ones((11, 12, 12), np.float32),
        "weights": np.ones((11, 5)),
    }
    masked = (("tokens", 1), ("vectors", 1), ("frames", 1), ("frames", 2))
    assert possible_masks(split_of(feed)) == [Mask("mask", 0, masked), Mask("mask", 1, masked)]
    for shape in ((11, 1, 1, 12), (11, 12, 1)):
        ready = {**feed, "mask": np.where(feed["mask"], 0.0, -1e4).reshape(shape)}
        assert possible_masks(split_of(ready)) == [Mask("mask", -1e4, masked), Mask("mask", 0, masked)]
    raw = Split((Batch(feed),), {"mask": Affine(-1e4, 1e4)})
    assert {mask.marker for mask in possible_masks(raw)} == {0, 1e4}
    single = {name: array[:, :1, :1] if name == "frames" else array[:, :1] for name, array in feed.items()}
    assert possible_masks(split_of(feed, single)) == [Mask("mask", 0, masked), Mask("mask", 1, masked)]
    # Masks are not filled: another that marks the same would say that there is something to be read.
    twice = {**feed, "other": 1 - feed["mask"]}
    assert {mask.masked for mask in possible_masks(split_of(twice))} == {masked}


@pytest.mark.parametrize(
    "feed",
    [
        {"tokens": sentences()["tokens"]},
        {"mask": sentences()["mask"]},
        sentences() | {"mask": np.ones((11, 12), np.int64)},
        sentences() | {"mask": np.arange(132).reshape(11, 12) % 3},
        sentences() | {"mask": sentences()["mask"][:, :7]},
        sentences() | {"mask": sentences()["mask"][:, 3]},
    ],
    ids=["no mask", "nothing masked", "one value", "three values", "other positions", "of examples"],
)
def test_no_other_input_is_a_mask(feed: Feed) -> None:
    assert possible_masks(split_of(feed)) == []


def test_padding_gets_the_contents_of_other_positions_and_nothing_else_changes() -> None:
    frames = np.random.default_rng(1).standard_normal((11, 3, 12))
    feed = sentences() | {"frames": frames}
    before, padding = {name: array.copy() for name, array in feed.items()}, feed["mask"] == 0
    [mask] = [one for one in possible_masks(split_of(feed)) if one.marker == 0]
    filled, elsewhere = mask.refilled(feed), mask.refilled(feed, elsewhere=True)
    for name, array in before.items():
        np.testing.assert_array_equal(feed[name], array)
    for one, kept in ((filled, ~padding), (elsewhere, padding)):
        np.testing.assert_array_equal(one["mask"], before["mask"])
        np.testing.assert_array_equal(one["tokens"][kept], before["tokens"][kept])
        assert (one["tokens"][~kept] != PAD).all()
        np.testing.assert_array_equal(np.all(one["frames"] == frames, axis=1)[padding], kept[padding])
        np.testing.assert_array_equal(one["frames"].transpose(0, 2, 1)[kept], frames.transpose(0, 2, 1)[kept])
    nothing, all_of_it = (feed | {"mask": np.full_like(feed["mask"], value)} for value in (1, 0))
    assert mask.refilled(nothing) is nothing
    assert (mask.refilled(all_of_it)["tokens"] != PAD).all()


def test_a_mask_is_tried_on_the_examples_that_it_leaves_the_least_of() -> None:
    feed = sentences(np.array([5, 2, 0, 9, 1, 7]))
    found = most_padded(split_of(feed), Mask("mask", 0, (("tokens", 1),)), 3)
    [batch] = found.batches
    np.testing.assert_array_equal(batch.inputs["tokens"], feed["tokens"][[0, 1, 4]])


@pytest.mark.parametrize(
    ("lay_out", "example_axis"),
    [
        (lambda rows: rows, 0),
        (lambda rows: rows.reshape(20, 6), 0),
        (lambda rows: rows.transpose(1, 0, 2).reshape(20, 6), 0),
        (lambda rows: rows.transpose(1, 0, 2), 1),
        (lambda rows: rows.reshape(4, 5, 2, 3).transpose(0, 2, 1, 3), 0),
        (lambda rows: rows.reshape(4, 5, 2, 3).transpose(0, 2, 1, 3).reshape(8, 5, 3), 0),
        (lambda rows: rows.reshape(4, 5, 2, 3).transpose(0, 2, 3, 1).reshape(8, 3, 5), 0),
    ],
    ids=[
        "positions",
        "merged",
        "positions first and merged",
        "positions first",
        "heads",
        "heads merged",
        "keys",
    ],
)
def test_padding_is_found_wherever_positions_lie(
    lay_out: Callable[[Flags], Flags], example_axis: int
) -> None:
    mask = np.arange(5) >= np.array([2, 5, 1, 3])[:, None]
    whole = np.broadcast_to(mask[..., None], (4, 5, 6))
    changed = whole & (np.random.default_rng(0).random(whole.shape) < 0.6)  # zeros stay zeros behind a Relu
    found = padding_of(lay_out(changed), example_axis, mask)
    assert found is not None
    np.testing.assert_array_equal(found, lay_out(whole))


def test_scores_between_positions_have_no_padding_before_the_mask() -> None:
    mask = np.arange(5) >= np.array([2, 5, 1, 3])[:, None]
    scores = np.broadcast_to(mask[:, None, :, None] | mask[:, None, None, :], (4, 2, 5, 5))
    assert padding_of(scores, 0, mask) is None
    assert padding_of(np.ones((4, 5, 6), np.bool_), 0, mask) is None
    assert padding_of(np.ones((4, 7, 6), np.bool_), 0, mask) is None
    rows, columns = (
        np.broadcast_to(one, scores.shape) for one in (mask[:, None, :, None], mask[:, None, None])
    )
    found = padding_of(rows & ~columns, 0, mask)  # behind the mask keys of padding weigh nothing
    np.testing.assert_array_equal(found, rows & (np.arange(5) < 3))


def test_channels_that_never_change_are_no_padding() -> None:
    mask = np.arange(5) >= np.array([2, 5, 1, 3])[:, None]
    changed = mask[..., None] & np.array([True, False, True])
    for one in (changed, changed.reshape(20, 3)):
        np.testing.assert_array_equal(padding_of(one, 0, mask), one)


def test_an_input_is_a_mask_if_no_output_reads_what_it_marks() -> None:
    assert masks_of(sentence_embedder, sentences()) == [("mask", 0)]


def tokens_and_mask() -> tuple[GraphBuilder, str, str, str]:
    """A model with both for inputs, and a table of 8 channels."""
    net = GraphBuilder()
    names = ("tokens", "mask")
    tokens, mask = (net.input(name, "batch", "length", dtype=TensorProto.INT64) for name in names)
    return net, tokens, mask, net.constant("table.weight", net.rng.standard_normal((N_TOKENS, 8)))


def scores_of_mean(net: GraphBuilder, x: str) -> str:
    pooled = net.node("ReduceMean", x, net.constant("axes", [1], np.int64), keepdims=0)
    return net.gemm(pooled, "fc", 8, 4)


def kinds_are_read() -> onnx.ModelProto:
    """Two kinds of tokens, and the mean over all of them."""
    net, tokens, kinds, table = tokens_and_mask()
    kind = net.constant("kind.weight", net.rng.standard_normal((2, 8)))
    x = net.node("Add", net.node("Gather", table, tokens), net.node("Gather", kind, kinds))
    return net.build(logits=(scores_of_mean(net, x), ("batch", 4)))


def every_position_is_an_output() -> onnx.ModelProto:
    """Padding has scores too: a metric may count them."""
    net, tokens, mask, table = tokens_and_mask()
    weight = net.node(
        "Unsqueeze", net.node("Cast", mask, to=TensorProto.FLOAT), net.constant("axis", [2], np.int64)
    )
    x = net.node("Gather", table, tokens)
    total = net.node("ReduceSum", net.node("Mul", x, weight), net.constant("one", [1], np.int64))
    return net.build(scores=(net.linear(net.node("Add", x, total), "fc", 8, 4), ("batch", "length", 4)))


def labelled() -> onnx.ModelProto:
    """The only output is a class: it may stay what it is whatever changes."""
    net, tokens, mask, table = tokens_and_mask()
    kept = net.node("Gather", table, net.node("Mul", tokens, mask))
    label = net.node("ArgMax", scores_of_mean(net, kept), axis=1, keepdims=0)
    return net.build(["label"], label=(label, ("batch",)))


def as_many_rows_as_are_found() -> onnx.ModelProto:
    """The size of an output depends on what is in the padding."""
    net, tokens, mask, table = tokens_and_mask()
    x = net.node("Gather", table, net.node("Mul", tokens, mask))
    rows = net.node(
        "Transpose", net.node("NonZero", net.node("Equal", tokens, net.constant("pad", PAD, np.int64)))
    )
    return net.build(["rows"], logits=(scores_of_mean(net, x), ("batch", 4)), rows=(rows, ("found", 2)))


def saturated() -> onnx.ModelProto:
    """What is read does not show: the output is 1 whatever comes."""
    net, tokens, kinds, table = tokens_and_mask()
    x = net.node("Add", net.node("Gather", table, tokens), net.node("Gather", table, kinds))
    offset = net.constant("offset", np.full(4, 100.0))
    scores = net.node("Sigmoid", net.node("Add", scores_of_mean(net, x), offset))
    return net.build(scores=(scores, ("batch", 4)))


@pytest.mark.parametrize(
    "make", [kinds_are_read, every_position_is_an_output, labelled, as_many_rows_as_are_found, saturated]
)
def test_what_an_output_depends_on_is_no_padding(make: Callable[[], onnx.ModelProto]) -> None:
    assert masks_of(make, sentences()) == []


def with_kinds(read: bool) -> onnx.ModelProto:
    """Padding is where the mask is 1; kinds of tokens are all 0."""
    net = GraphBuilder()
    names = ("kinds", "tokens", "mask")
    kinds, tokens, mask = (net.input(name, "batch", "length", dtype=TensorProto.INT64) for name in names)
    table, kind = (
        net.constant(f"{name}.weight", net.rng.standard_normal((N_TOKENS, 8))) for name in ("table", "kind")
    )
    x = net.node("Add", net.node("Gather", table, tokens), net.node("Gather", kind, kinds))
    keep = net.node("Sub", net.constant("all", 1.0), net.node("Cast", mask, to=TensorProto.FLOAT))
    if not read:
        x = net.node("Mul", x, net.node("Unsqueeze", keep, net.constant("last", [2], np.int64)))
    scores = net.node(
        "Add", scores_of_mean(net, x), net.node("ReduceMean", keep, net.constant("axis", [1], np.int64))
    )
    return net.build(logits=(scores, ("batch", 4)))


@pytest.mark.parametrize("read", [False, True])
def test_an_input_that_is_always_the_same_tells_nothing_of_a_mask(read: bool) -> None:
    feed = sentences() | {"kinds": np.zeros((11, 12), np.int64)}
    feed["mask"] = 1 - feed["mask"]
    found = find_masks(model_of(with_kinds(read)), split_of(feed))
    assert found == (() if read else (Mask("mask", 1, (("tokens", 1),)),))


def masked_lookup(n_tokens: int = 2 * N_TOKENS) -> onnx.ModelProto:
    """What is padding is looked up as the first token, of one sequence or of two."""
    net = GraphBuilder()
    names = ("tokens", "mask")
    tokens, mask = (net.input(name, "batch", "length", dtype=TensorProto.INT64) for name in names)
    others = net.input("others", "batch", "length", dtype=TensorProto.INT64)
    table = net.constant("table.weight", net.rng.standard_normal((n_tokens, 8)))
    axes = net.constant("axes", [1], np.int64)
    parts = [net.node("Gather", table, one) for one in (net.node("Mul", tokens, mask), others)]
    pooled = [net.node("ReduceMean", part, axes, keepdims=0) for part in parts]
    return net.build(logits=(net.gemm(net.node("Add", *pooled), "fc", 8, 4), ("batch", 4)))


def test_what_the_runtime_refuses_in_the_place_of_padding_is_no_padding() -> None:
    feed = sentences()
    feed |= {"tokens": np.where(feed["mask"], feed["tokens"], -1000), "others": feed["tokens"].clip(0, 9)}
    [mask] = find_masks(model_of(masked_lookup()), split_of(feed))
    # The other sequence has no mask: all of it is read.
    assert (mask.name, mask.marker, mask.masked) == ("mask", 0, (("tokens", 1),))


def test_a_batch_whose_output_depends_on_padding_is_counted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model, feed = model_of(kinds_are_read()), sentences()
    values = quantizable_values(find_blocks(model.graph))
    expected = collect_statistics(model, values, split_of(feed))
    monkeypatch.setattr(collect, "find_masks", lambda model, split: possible_masks(split)[:1])
    found = collect_statistics(model, values, split_of(feed))
    assert found.padding == {}
    for name, one in expected.tensors.items():
        np.testing.assert_array_equal(found.tensors[name].counts, one.counts)


def two_towers() -> onnx.ModelProto:
    """Scores between the positions of one sequence, and the mean of another."""
    net = GraphBuilder()
    names = ("tokens", "mask", "others", "other_mask")
    tokens, mask, others, other_mask = (
        net.input(n, "batch", "length", dtype=TensorProto.INT64) for n in names
    )
    table = net.weight("table.weight", N_TOKENS, 8, fan_in=8)
    x, y = (net.node("Gather", table, one) for one in (tokens, others))
    scores = net.node("MatMul", net.linear(x, "query", 8, 8), net.node("Transpose", x, perm=[0, 2, 1]))
    axis, last = (net.constant(name, [at], np.int64) for name, at in (("one", 1), ("two", 2)))
    weights = [net.node("Cast", one, to=TensorProto.FLOAT) for one in (mask, other_mask)]
    rows, columns = (net.node("Unsqueeze", weights[0], one) for one in (axis, last))
    attended = net.node("MatMul", net.node("Mul", net.node("Mul", scores, rows), columns), x)
    read = net.node("Mul", net.linear(y, "other", 8, 8), net.node("Unsqueeze", weights[1], last))
    pooled = [net.node("ReduceMean", one, axis, keepdims=0) for one in (attended, read)]
    return net.build(logits=(net.gemm(net.node("Add", *pooled), "fc", 8, 4), ("batch", 4)))


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("n_others", [(0, 5), (3, 0), (12, 4)])
def test_a_mask_marks_padding_in_what_depends_on_its_own_inputs_alone(
    n_others: tuple[int, int], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the other sequence is empty, its padding is everywhere."""
    model, feed = model_of(two_towers()), sentences(np.array([7, 12, 7, 12]))
    other_mask = (np.arange(12) < np.tile(n_others, 2)[:, None]).astype(np.int64)
    feed |= {"others": sentences(np.full(4, 12), seed=3)["tokens"], "other_mask": other_mask}
    monkeypatch.setattr(tensor_run, "_MAX_BATCH", batch)
    found = collect_statistics(model, quantizable_values(find_blocks(model.graph)), split_of(feed))
    assert found.tensors["matmul_5"].n_values == 4 * 12 * 12  # scores, before any mask
    assert found.tensors["add_3"].n_values == 8 * (7 + 12 + 7 + 12)
    assert found.tensors["add_14"].n_values == 8 * 2 * sum(n_others)


def test_statistics_of_padded_data_are_those_of_the_data_without_padding(tmp_path: Path) -> None:
    model, feed = model_of(sentence_embedder()), sentences()
    values = quantizable_values(find_blocks(model.graph))
    stores = MomentStore(tmp_path / "padded"), MomentStore(tmp_path / "plain")
    found = collect_statistics(model, values, split_of(feed), moments=stores[0])
    expected = collect_statistics(model, values, unpadded(feed), moments=stores[1])

    assert found.padding == {"mask": pytest.approx(1 - LENGTHS.sum() / (len(LENGTHS) * 12))}
    assert expected.padding == {}
    others = set()
    for name, one in expected.tensors.items():
        other = found.tensors[name]
        if other.n_values != one.n_values:
            others.add(name)
            continue
        assert (other.low, other.high) == pytest.approx((one.low, one.high), rel=1e-5)
        assert np.abs(other.counts - one.counts).sum() <= 0.01 * one.n_values  # on the edge of a bin
    # Scores and weights of keys that are padding belong to queries that are none; the mask itself, and
    # what it has set to zero, do not depend on the contents of padding.
    assert {name.rsplit("_", 1)[0] for name in others} == {"matmul", "softmax", "unsqueeze", "mul"}
    assert len(others) == 4
    # Kernels meet the padding too: those that find a range at run time, and those that convert.
    whole = collect_statistics(model, values, split_of({**feed, "mask": np.ones_like(feed["mask"])}))
    assert whole.padding == {}
    for name in set(values) - others - {name for name in values if name.startswith("where")}:
        assert found.extent(name).n_values == whole.tensors[name].n_values
        assert found.extent(name).low <= found.tensors[name].low
        assert found.extent(name).high >= found.tensors[name].high
    for name, maxima in expected.channel_maxima.items():
        np.testing.assert_allclose(found.channel_maxima[name], maxima, rtol=1e-5, atol=1e-6)
    for layer in model.summary.layers:
        with_padding, without = (store.get(layer.name) for store in stores)
        assert with_padding is not None
        assert without is not None
        assert with_padding.n_rows == without.n_rows
        for half, plain in zip(with_padding.halves, without.halves, strict=True):
            np.testing.assert_allclose(half[0], plain[0], rtol=1e-4, atol=1e-5)


def test_padding_takes_no_part_of_the_vectors_that_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, feed = model_of(sentence_embedder()), sentences(np.full(10, 6), seed=1)
    feed = {
        name: np.pad(array, ((0, 0), (0, 30)), constant_values=pad)
        for (name, array), pad in zip(feed.items(), (PAD, 0), strict=True)
    }
    monkeypatch.setattr("autoq.calibration.moments._MIN_VECTORS", 40)
    monkeypatch.setattr("autoq.calibration.moments._VECTORS_PER_COLUMN", 0)
    store = MomentStore(tmp_path)
    collect_statistics(model, [], split_of(feed), moments=store)
    plain = MomentStore(tmp_path / "plain")
    collect_statistics(model, [], unpadded(feed), moments=plain)
    moments, expected = (one.get("project") for one in (store, plain))
    assert moments is not None
    assert expected is not None
    assert moments.n_rows == expected.n_rows == (20, 20)
    np.testing.assert_allclose(moments.mean, expected.mean, rtol=1e-4, atol=1e-5)
