import gc
import threading
import time
import weakref
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from autoq.core.data import Affine, Array, Batch, Feed, Split
from autoq.core.errors import DataError, ModelError
from autoq.core.layers import TensorSpec
from autoq.evaluation import batches
from autoq.evaluation.batches import Feeding, feeding_for, run_split, timing_feeds


class Summing:
    """Sums each example's row; the earlier a batch, the longer it takes."""

    def __init__(self, *, batch_size: int | None = None, delay_s: float = 0.0) -> None:
        self.batch_size, self.delay_s = batch_size, delay_s
        self.sizes: list[int] = []
        self.threads: set[int] = set()

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        n = len(feed["x"])
        if self.batch_size is not None:
            assert n == self.batch_size, "a static model takes its own batch size alone"
        self.sizes.append(n)
        self.threads.add(threading.get_ident())
        time.sleep(self.delay_s / len(self.sizes))
        return {
            "sum": feed["x"].sum(axis=1),
            "rest": feed["x"][:, 1:],
            "shape": np.array(feed["x"].shape[1:]),
        }

    def time_block(self, n_runs: int, feeds: Sequence[Feed]) -> float:
        raise AssertionError("scoring does not time")

    def close(self) -> None:
        pass


def split_of(n: int, *, width: int = 3, transform: Affine | None = None) -> Split:
    x = np.arange(n * width, dtype=np.float32).reshape(n, width)
    return Split((Batch({"x": x}, np.arange(n)),), {"x": transform} if transform else {})


def sums(session: Summing, split: Split, feeding: Feeding) -> Array:
    return np.concatenate(
        [chunk.outputs["sum"] for chunk in run_split(session, split, feeding, output="sum")]
    )


@pytest.mark.parametrize("n_workers", [1, 3])
def test_outputs_come_in_order_whatever_the_number_of_workers(n_workers: int) -> None:
    split, session = split_of(50), Summing(delay_s=0.02)
    found = sums(session, split, Feeding(4, n_workers=n_workers))
    assert found.tolist() == split.batches[0].inputs["x"].sum(axis=1).tolist()
    assert (len(session.threads) > 1) == (n_workers > 1)


def test_a_run_that_fails_ends_the_others_and_is_told() -> None:
    class Failing(Summing):
        def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
            if feed["x"][0, 0] >= 24:
                raise ModelError("the third batch")
            return super().run(feed)

    session, n_threads = Failing(delay_s=0.02), threading.active_count()
    with pytest.raises(ModelError, match="the third batch"):
        sums(session, split_of(400), Feeding(4, n_workers=2))
    assert len(session.sizes) <= 4, "the other thread went on"
    assert threading.active_count() == n_threads


@pytest.mark.parametrize("n_workers", [1, 2, 4])
def test_of_several_runs_that_fail_the_first_is_told(n_workers: int) -> None:
    class Failing(Summing):
        def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
            first = feed["x"][0, 0]
            time.sleep(0.05 if first == 0 else 0.0)
            raise ModelError(f"the batch of {first:g}")

    with pytest.raises(ModelError, match=r"the batch of 0$"):
        sums(Failing(), split_of(400), Feeding(4, n_workers=n_workers))


@pytest.mark.parametrize("n_workers", [1, 2])
def test_what_a_run_fails_with_does_not_outlive_it(n_workers: int) -> None:
    class Failing(Summing):
        def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
            raise ModelError("any batch")

    def fail() -> weakref.ref[Failing]:
        session = Failing()
        with pytest.raises(ModelError):
            next(run_split(session, split_of(400), Feeding(4, n_workers=n_workers)))
        return weakref.ref(session)

    gc.disable()
    try:
        assert fail()() is None, "its frames are kept until garbage is collected"
    finally:
        gc.enable()


def test_a_static_model_gets_full_batches_and_the_filling_is_dropped() -> None:
    split, session = split_of(10), Summing(batch_size=4)
    found = sums(session, split, Feeding(4, is_static=True))
    assert found.tolist() == split.batches[0].inputs["x"].sum(axis=1).tolist()
    assert session.sizes == [4, 4, 4]


def test_a_dynamic_model_gets_what_is_left() -> None:
    session = Summing()
    sums(session, split_of(10), Feeding(4))
    assert session.sizes == [4, 4, 2]


def test_ragged_splits_give_chunks_of_one_shape_with_positions_and_labels() -> None:
    ragged = Split((*split_of(3, width=2).batches, *split_of(5, width=4).batches))
    chunks = list(run_split(Summing(), ragged, Feeding(2), output="rest"))
    assert [(chunk.start, chunk.outputs["rest"].shape) for chunk in chunks] == [(0, (3, 1)), (3, (5, 3))]
    assert [np.asarray(chunk.labels).tolist() for chunk in chunks] == [[0, 1, 2], [0, 1, 2, 3, 4]]
    assert [chunk.n_examples for chunk in chunks] == [3, 5]


def test_long_splits_are_cut_into_chunks_of_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "CHUNK_EXAMPLES", 10)
    session = Summing()
    chunks = list(run_split(session, split_of(20), Feeding(4), output="sum"))
    assert [(chunk.start, chunk.n_examples) for chunk in chunks] == [(0, 8), (8, 8), (16, 4)]
    assert session.sizes == [4] * 5


def test_transforms_are_applied_on_the_way() -> None:
    plain, shifted = split_of(5), split_of(5, transform=Affine(2.0, -1.0))
    assert np.array_equal(sums(Summing(), shifted, Feeding(2)), 2 * sums(Summing(), plain, Feeding(2)) - 3)


def test_an_output_that_is_missing_or_has_no_row_per_example_is_named() -> None:
    with pytest.raises(ModelError, match="no output 'logits', it has rest, shape, sum"):
        list(run_split(Summing(), split_of(4), Feeding(4), output="logits"))
    with pytest.raises(ModelError, match=r"output 'shape' has shape \(1,\) for 4 examples, expected 4"):
        list(run_split(Summing(), split_of(4), Feeding(4)))


def test_an_output_whose_size_depends_on_the_data_is_named() -> None:
    class Detecting(Summing):
        def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
            self.sizes.append(len(feed["x"]))
            return {"boxes": np.zeros((len(feed["x"]), len(self.sizes), 4), np.float32)}

    with pytest.raises(ModelError, match=r"'boxes' has shape \(2, 1, 4\) for one batch and \(2, 2, 4\)"):
        list(run_split(Detecting(), split_of(4), Feeding(2)))


DYNAMIC = (TensorSpec("x", "float32", ("n", "seq")),)


def test_a_batch_size_written_into_the_model_wins_over_the_targets() -> None:
    static = (TensorSpec("x", "float32", (8, 3)),)
    assert feeding_for(static, 1) == Feeding(8, is_static=True)
    assert feeding_for(DYNAMIC, 1) == Feeding(1)
    assert feeding_for(DYNAMIC, 2, threads=2, n_cores=7) == Feeding(2, n_workers=3)
    assert feeding_for(DYNAMIC, 2, threads=8, n_cores=2).n_workers == 1


def test_models_are_timed_with_the_first_examples_and_short_splits_repeat() -> None:
    feeds = timing_feeds(split_of(10), DYNAMIC, Feeding(4), n_feeds=8)
    assert [feed["x"][:, 0].tolist() for feed in feeds] == [[0.0, 3.0, 6.0, 9.0], [12.0, 15.0, 18.0, 21.0]]
    (only,) = timing_feeds(split_of(3), DYNAMIC, Feeding(4))
    assert only["x"][:, 0].tolist() == [0.0, 3.0, 6.0, 0.0]


def test_dynamic_axes_are_cut_or_repeated_to_the_size_asked_for() -> None:
    (short,) = timing_feeds(split_of(1), DYNAMIC, Feeding(1), shapes={"seq": 2})
    (long,) = timing_feeds(split_of(1), DYNAMIC, Feeding(1), shapes={"seq": 5})
    assert short["x"].tolist() == [[0.0, 1.0]]
    assert long["x"].tolist() == [[0.0, 1.0, 2.0, 0.0, 1.0]]
    with pytest.raises(DataError, match=r"timing.shapes: no dynamic axis 'length' \(dynamic axes: seq\)"):
        timing_feeds(split_of(1), DYNAMIC, Feeding(1), shapes={"length": 5})
