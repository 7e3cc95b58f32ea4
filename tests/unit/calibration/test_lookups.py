from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from autoq.calibration import tensor_run
from autoq.calibration.collect import collect_statistics
from autoq.calibration.moment_store import MomentStore
from autoq.calibration.moments import LookupCounter
from autoq.core.data import Array, Batch, Split
from autoq.graph.float_model import build_float_model
from autoq.testing.models import N_TOKENS, GraphBuilder, tagger, tied_embedding, token_classifier

KEY = "0123456789abcdef"


def collected(proto: onnx.ModelProto, feeds: list[dict[str, Array]], folder: Path) -> MomentStore:
    store = MomentStore(folder)
    model = build_float_model(ir.from_proto(proto))
    collect_statistics(model, [], Split(tuple(Batch(feed) for feed in feeds)), moments=store)
    return store


def embedding_name(proto: onnx.ModelProto) -> str:
    model = build_float_model(ir.from_proto(proto))
    [name] = [layer.name for layer in model.summary.layers if layer.op == "Gather"]
    return name


def shares(examples: list[Array], n_rows: int) -> Array:
    """Share of lookups that read each row, one lookup at a time."""
    counts = np.zeros(n_rows)
    for example in examples:
        for row in np.asarray(example).reshape(-1):
            counts[row] += 1.0  # negative ones count from the end, as here
    found: Array = counts / counts.sum()
    return found


def draw(n_examples: int, length: int, seed: int = 0, *, lowest: int = 0) -> Array:
    """Tokens, the rare last ones never."""
    return np.random.default_rng(seed).integers(lowest, N_TOKENS - 5, (n_examples, length))


def test_frequencies_are_exact_and_zero_for_rows_that_are_never_read(tmp_path: Path) -> None:
    tokens = draw(9, 7, lowest=-4)
    store = collected(token_classifier(), [{"tokens": tokens}], tmp_path)
    moments = store.get(embedding_name(token_classifier()))
    assert moments is not None
    expected = shares(list(tokens), N_TOKENS)
    assert moments.mean.shape == (N_TOKENS, 1)
    np.testing.assert_array_equal(moments.mean[:, 0], expected.astype(np.float32))
    assert (moments.mean[:, 0] == 0.0).any()
    assert moments.n_rows == (5 * 7, 4 * 7)
    for half in (0, 1):
        [block] = moments.halves[half]
        assert block.shape == (N_TOKENS, 1, 1)
        np.testing.assert_array_equal(
            block[:, 0, 0], shares(list(tokens[half::2]), N_TOKENS).astype(np.float32)
        )
    np.testing.assert_allclose(moments.merged()[0][:, 0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_batches_of_any_size_and_length_give_the_same_frequencies(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [draw(3, 4), draw(5, 9, seed=1)]
    monkeypatch.setattr(tensor_run, "_MAX_BATCH", size)
    store = collected(token_classifier(), [{"tokens": tokens} for tokens in batches], tmp_path)
    moments = store.get(embedding_name(token_classifier()))
    assert moments is not None
    examples = [example for tokens in batches for example in tokens]
    np.testing.assert_array_equal(moments.mean[:, 0], shares(examples, N_TOKENS).astype(np.float32))
    assert moments.n_rows == (sum(map(len, examples[::2])), sum(map(len, examples[1::2])))


def test_each_table_counts_its_own_lookups(tmp_path: Path) -> None:
    feed = {"words": draw(4, 6), "kinds": draw(4, 6, seed=1)}
    store = collected(tagger(), [feed], tmp_path)
    for name, source in (("embeddings.word", "words"), ("embeddings.kind", "kinds")):
        moments = store.get(name)
        assert moments is not None
        np.testing.assert_array_equal(
            moments.mean[:, 0], shares(list(feed[source]), N_TOKENS).astype(np.float32)
        )


def test_tables_that_are_read_alike_share_their_frequencies(tmp_path: Path) -> None:
    net = GraphBuilder()
    tokens = net.input("tokens", "batch", "length", dtype=TensorProto.INT64)
    sizes = {"one": (N_TOKENS, 8), "same": (N_TOKENS, 8), "longer": (N_TOKENS + 1, 8)}
    found = [
        net.node("Gather", net.weight(f"{name}.weight", *size, fan_in=1), tokens)
        for name, size in sizes.items()
    ]
    total = net.node("Sum", *found)
    proto = net.build(y=(net.linear(total, "fc", 8, 4), ("batch", "length", 4)))
    store = collected(proto, [{"tokens": draw(3, 4)}], tmp_path)
    assert store.key("one") == store.key("same") != store.key("longer")
    longer = store.get("longer")
    assert longer is not None
    assert longer.mean.shape == (N_TOKENS + 1, 1)


def test_a_table_that_is_multiplied_with_as_well_has_both(tmp_path: Path) -> None:
    tokens = draw(30, 1)[:, 0]
    store = collected(tied_embedding(), [{"tokens": tokens}], tmp_path)
    model = build_float_model(ir.from_proto(tied_embedding()))
    for layer in model.summary.layers:
        moments = store.get(layer.name)
        assert moments is not None
        assert moments.mean.shape == ((N_TOKENS, 1) if layer.op == "Gather" else (1, 48))


def with_positions(batch: int | str) -> onnx.ModelProto:
    """Tokens and their positions, which do not know of the batch: (1, length)."""
    net = GraphBuilder()
    tokens = net.input("tokens", batch, "length", dtype=TensorProto.INT64)
    words = net.node("Gather", net.weight("word.weight", N_TOKENS, 8, fan_in=1), tokens)
    length = net.node("Shape", tokens, start=1, end=2)
    scalar = net.node("Squeeze", length)
    bounds = [net.constant(name, value, np.int64) for name, value in (("zero", 0), ("one", 1))]
    steps = net.node("Range", bounds[0], scalar, bounds[1])
    steps = net.node("Unsqueeze", steps, net.constant("first_axis", [0], np.int64))
    places = net.node("Gather", net.weight("position.weight", 12, 8, fan_in=1), steps)
    x = net.node("Add", words, places)
    return net.build(y=(net.linear(x, "fc", 8, 4), (batch, "length", 4)))


@pytest.mark.parametrize("batch", ["batch", 1, 4])
def test_positions_count_for_every_example_that_shares_them(batch: int | str, tmp_path: Path) -> None:
    batches = [draw(6, 4), draw(3, 9, seed=1)]
    store = collected(with_positions(batch), [{"tokens": tokens} for tokens in batches], tmp_path)
    moments = store.get("position")
    assert moments is not None
    examples = [np.arange(tokens.shape[1]) for tokens in batches for _ in tokens]
    np.testing.assert_allclose(moments.mean[:, 0], shares(examples, 12), rtol=1e-6)
    assert (moments.mean[9:] == 0.0).all()
    assert moments.n_rows == (sum(map(len, examples[::2])), sum(map(len, examples[1::2])))


def test_padding_of_a_static_batch_does_not_count(tmp_path: Path) -> None:
    tokens = draw(6, 5)
    store = collected(with_positions(4), [{"tokens": tokens}], tmp_path)
    moments = store.get("word")
    assert moments is not None
    np.testing.assert_array_equal(moments.mean[:, 0], shares(list(tokens), N_TOKENS).astype(np.float32))


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.booleans())
def test_a_counter_does_not_mind_how_examples_come_in(sizes: list[int], shared: bool) -> None:
    """With padding behind every batch; shared lookups count for every real example."""
    rng = np.random.default_rng(sum(sizes))
    counter = LookupCounter(KEY, 7)
    seen: list[Array] = []
    for size in sizes:
        indices = rng.integers(-7, 7, 3 if shared else (size + 2, 3))
        if shared:
            counter.add_shared(indices, first=len(seen), n_real=size)
        else:
            counter.add(indices, first=len(seen), n_examples=size + 2, n_real=size)
        seen += [indices if shared else indices[index] for index in range(size)]
    moments = counter.finish()
    assert moments is not None
    for half in (0, 1):
        expected = shares(seen[half::2] or seen, 7)
        np.testing.assert_allclose(moments.halves[half][0][:, 0, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(moments.mean[:, 0], shares(seen, 7), rtol=1e-6)


def test_no_lookup_gives_no_frequencies() -> None:
    counter = LookupCounter(KEY, 7)
    counter.add(np.zeros((2, 0), np.int64), first=0, n_examples=2, n_real=2)
    assert counter.finish() is None
    assert counter.nbytes == 2 * 7 * 8
