"""A rewritten model is derived once: later calls read it, with the vectors that made it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from autoq.calibrating import Calibrator, derive
from autoq.core.choices import AS_IT_IS, Rewrites
from autoq.core.data import Batch, Split
from autoq.derived import derive_once
from autoq.exporting import Silent
from autoq.graph.float_model import FloatModel, build_float_model
from autoq.graph.rewriting import replay_rewrites
from autoq.home import Home
from autoq.testing.models import attention, example_feed

SMOOTH = Rewrites(smooth_alpha=0.5)


@pytest.fixture(scope="module")
def model() -> FloatModel:
    return build_float_model(ir.from_proto(attention()))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.open(tmp_path)


def calibrator(home: Home, *, seed: int = 0) -> Calibrator:
    split = Split((Batch(example_feed(attention(), n_examples=8, seed=seed)),))
    return Calibrator(home, split, {"runtime_version": "any"}, Silent())


def refuse_to_derive(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("derived again")

    monkeypatch.setattr("autoq.derived.derive", refuse)


@pytest.mark.parametrize("rewrites", [SMOOTH, Rewrites(equalize=True), Rewrites(True, 0.5)])
def test_what_is_read_is_what_was_derived(
    model: FloatModel, home: Home, rewrites: Rewrites, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = calibrator(home)
    plain = derive(model, rewrites, load, load.key)
    first = derive_once(home, model, rewrites, load)
    refuse_to_derive(monkeypatch)
    again = derive_once(home, model, rewrites, calibrator(home))
    for source in (first, again):
        assert source.model.summary == plain.model.summary
        assert source.statistics_key == plain.statistics_key
        for found, wanted in (
            (source.vectors.equalize, plain.vectors.equalize),
            (source.vectors.smooth, plain.vectors.smooth),
        ):
            assert found.keys() == wanted.keys()
            assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    assert replay_rewrites(model, again.vectors).summary.digest == again.model.summary.digest


def test_other_data_or_another_alpha_are_derived_anew(model: FloatModel, home: Home) -> None:
    first = derive_once(home, model, SMOOTH, calibrator(home))
    other_data = derive_once(home, model, SMOOTH, calibrator(home, seed=9))
    other_alpha = derive_once(home, model, Rewrites(smooth_alpha=0.8), calibrator(home))
    assert len({one.model.summary.digest for one in (first, other_data, other_alpha)}) == 3


def damage_vectors(home: Home) -> None:
    [path] = (home.cache / "derived").iterdir()
    path.write_bytes(path.read_bytes()[:100])


def remove_models(home: Home) -> None:
    for path in (home.cache / "models").iterdir():
        path.unlink()


@pytest.mark.parametrize("damage", [damage_vectors, remove_models])
def test_what_is_damaged_is_derived_again(model: FloatModel, home: Home, damage: object) -> None:
    assert callable(damage)
    first = derive_once(home, model, SMOOTH, calibrator(home))
    damage(home)
    again = derive_once(home, model, SMOOTH, calibrator(home))
    assert again.model.summary.digest == first.model.summary.digest
    assert home.model(first.model.summary.digest).exists()


def test_the_model_as_it_is_leaves_nothing_derived(model: FloatModel, home: Home) -> None:
    source = derive_once(home, model, AS_IT_IS, calibrator(home))
    assert source.model is model
    assert home.model(model.summary.digest).exists()
    assert not (home.cache / "derived").exists()
