from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from tiny_bench import WEIGHT, linear_model, split_of

from autoq.core.artifacts import ModelArtifact
from autoq.core.data import Array, Feed
from autoq.core.errors import UnfaithfulModel
from autoq.evaluation.faithful import check_faithful
from autoq.evaluation.ports import Session
from autoq.targets.onnxruntime_cpu import OnnxRuntimeTarget

FEEDS = list(split_of(64).feeds(16))
STEP = np.float32(0.05)
ROUNDED: Array = np.round(WEIGHT / STEP) * STEP


class Meddling(OnnxRuntimeTarget):
    """A runtime whose optimiser replaces the weights."""

    def __init__(self, weight: Array) -> None:
        super().__init__(threads=1, batch_size=16)
        self._weight = weight

    def open(self, model: ModelArtifact, *, optimize: bool = True) -> Any:
        return super().open(linear_model(self._weight) if optimize else model, optimize=optimize)


class Ids:
    """A session with an output of integers, which no rounding argument applies to."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        return {"best": self._session.run(feed)["scores"].argmax(axis=1)}

    def time_block(self, n_runs: int, feeds: Sequence[Feed]) -> float:
        return self._session.time_block(n_runs, feeds)

    def close(self) -> None:
        self._session.close()


def check(weight: Array, *, runs_as: Array) -> None:
    target = Meddling(runs_as)
    check_faithful(target, linear_model(weight), target.open(linear_model(WEIGHT), optimize=False), FEEDS)


def test_a_runtime_that_computes_what_is_written_passes() -> None:
    check(ROUNDED, runs_as=ROUNDED)
    check(WEIGHT, runs_as=WEIGHT)


def test_a_value_rounded_the_other_way_here_and_there_passes() -> None:
    moved = ROUNDED.copy()
    moved[3, 1] += STEP / 4
    check(ROUNDED, runs_as=moved)


def test_weights_that_are_quantised_behind_ones_back_are_found() -> None:
    with pytest.raises(UnfaithfulModel, match=r"output 'scores' changes by .*, expected at most"):
        check(ROUNDED, runs_as=np.round(WEIGHT * 2) / 2)


def test_a_layer_chosen_float_that_is_quantised_is_found_with_nothing_else_compressed() -> None:
    with pytest.raises(UnfaithfulModel):
        check(WEIGHT, runs_as=ROUNDED)


def test_nan_made_by_the_runtime_is_not_faithful() -> None:
    with pytest.raises(UnfaithfulModel, match="changes by nan"):
        check(ROUNDED, runs_as=np.full_like(WEIGHT, np.nan))


def test_outputs_of_integers_are_left_alone() -> None:
    class IdTarget(Meddling):
        def open(self, model: ModelArtifact, *, optimize: bool = True) -> Any:
            return Ids(super().open(model, optimize=optimize))

    target = IdTarget(np.round(WEIGHT))
    check_faithful(target, linear_model(WEIGHT), target.open(linear_model(WEIGHT)), FEEDS)


class Masked(OnnxRuntimeTarget):
    """A runtime, or a model, that rules the first class out."""

    def __init__(self, *, also_optimized: bool) -> None:
        super().__init__(threads=1, batch_size=16)
        self._also_optimized = also_optimized

    def open(self, model: ModelArtifact, *, optimize: bool = True) -> Any:
        session = super().open(model, optimize=optimize)
        return RulingOut(session) if self._also_optimized or not optimize else session


class RulingOut:
    def __init__(self, session: Session) -> None:
        self._session = session

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        scores = self._session.run(feed)["scores"].copy()
        scores[:, 0] = -np.inf
        return {"scores": scores}

    def close(self) -> None:
        self._session.close()


def test_classes_that_a_model_rules_out_are_no_difference() -> None:
    target = Masked(also_optimized=True)
    float_session = target.open(linear_model(WEIGHT))
    check_faithful(target, linear_model(ROUNDED), float_session, FEEDS)
    with pytest.raises(UnfaithfulModel):
        check_faithful(Masked(also_optimized=False), linear_model(ROUNDED), float_session, FEEDS)
