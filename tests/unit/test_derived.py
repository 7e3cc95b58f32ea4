"""A model is canonicalised and rewritten once: later calls read what came out, and with which vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from autoq.calibrating import Calibrator, SourceKeys, derive
from autoq.calibration.statistics import statistics_key
from autoq.core.choices import AS_IT_IS, Rewrites
from autoq.core.data import Batch, Split
from autoq.core.errors import ModelError
from autoq.derived import derive_once, kept_keys, load_once
from autoq.exporting import Silent
from autoq.graph.float_model import FloatModel, build_float_model, load_float_model, reload_float_model
from autoq.graph.rewriting import replay_rewrites
from autoq.home import Home
from autoq.testing.models import attention, example_feed, mlp

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


def keys_kept(home: Home, model: FloatModel, rewrites: Rewrites) -> SourceKeys | None:
    data = calibrator(home).calibration.digest
    return kept_keys(
        home, model, rewrites, lambda digest: statistics_key(digest, data, {"runtime_version": "any"})
    )


@pytest.mark.parametrize("rewrites", [AS_IT_IS, SMOOTH, Rewrites(True, 0.5)])
def test_what_will_be_read_is_named_before_it_is_read(
    model: FloatModel, home: Home, rewrites: Rewrites
) -> None:
    assert keys_kept(home, model, rewrites) is None
    source = derive_once(home, model, rewrites, calibrator(home))
    assert keys_kept(home, model, rewrites) == SourceKeys.of(source)


def remove_moments(home: Home) -> None:
    for path in (home.cache / "statistics").glob("*.moments/*"):
        path.unlink()


@pytest.mark.parametrize("damage", [damage_vectors, remove_models, remove_moments])
def test_what_is_damaged_is_not_foreseen(model: FloatModel, home: Home, damage: object) -> None:
    assert callable(damage)
    derive_once(home, model, SMOOTH, calibrator(home))
    damage(home)
    assert keys_kept(home, model, SMOOTH) is None


# --- the model as it was given ------------------------------------------------------------------------


def refuse_to_canonicalise(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("canonicalised again")

    monkeypatch.setattr("autoq.derived.load_float_model", refuse)


def save(path: Path, *, bias: float = 0.0, external: bool = False) -> Path:
    proto = mlp()
    first = next(one for one in proto.graph.initializer if one.name == "fc1.bias")
    first.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(first) + bias, "fc1.bias"))
    path.with_suffix(".data").unlink(missing_ok=True)
    outside = {"save_as_external_data": True, "location": path.with_suffix(".data").name} if external else {}
    onnx.save(proto, path, **outside, **({"size_threshold": 0} if external else {}))
    return path


@pytest.mark.parametrize("external", [False, True])
def test_a_file_is_canonicalised_once(
    home: Home, tmp_path: Path, external: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "m.onnx", external=external)
    first = load_once(home, path)
    refuse_to_canonicalise(monkeypatch)
    again = load_once(home, path)
    assert again.summary == first.summary
    assert again.artifact.content == first.artifact.content


@pytest.mark.parametrize("external", [False, True])
def test_a_file_that_was_written_to_is_read_anew(home: Home, tmp_path: Path, external: bool) -> None:
    first = load_once(home, save(tmp_path / "m.onnx", external=external))
    other = load_once(home, save(tmp_path / "m.onnx", bias=1.0, external=external))
    assert other.summary.digest != first.summary.digest
    again = load_once(home, save(tmp_path / "m.onnx", external=external))
    assert again.summary.digest == first.summary.digest


@pytest.mark.parametrize("external", [False, True])
def test_what_is_written_to_while_it_is_read_is_not_kept(
    home: Home, tmp_path: Path, external: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "m.onnx", external=external)

    def read_and_export_again(path: Path) -> FloatModel:
        model = load_float_model(path)
        save(path, bias=1.0, external=external)
        return model

    monkeypatch.setattr("autoq.derived.load_float_model", read_and_export_again)
    load_once(home, path)
    monkeypatch.undo()
    assert load_once(home, path).summary == load_float_model(path).summary


def remove_known(home: Home) -> None:
    [path] = (home.cache / "canonical").iterdir()
    path.unlink()


def damage_known(home: Home) -> None:
    [path] = (home.cache / "canonical").iterdir()
    path.write_text("[]")


def damage_models(home: Home) -> None:
    for path in (home.cache / "models").iterdir():
        path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("damage", [remove_known, damage_known, remove_models, damage_models])
def test_what_is_damaged_is_canonicalised_again(home: Home, tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    path = save(tmp_path / "m.onnx")
    first = load_once(home, path)
    damage(home)
    again = load_once(home, path)
    assert again.summary == first.summary
    assert again.artifact.content == first.artifact.content
    assert reload_float_model(home.model(first.summary.digest)).summary == first.summary


def test_external_data_that_went_missing_are_told(home: Home, tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", external=True)
    load_once(home, path)
    path.with_suffix(".data").unlink()
    with pytest.raises(ModelError, match=r"m\.data.* is missing"):
        load_once(home, path)


def test_a_file_that_cannot_be_read_is_told(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "m.onnx")

    def refuse(self: Path, *arguments: object, **named: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ModelError, match=r"m\.onnx: not a readable ONNX model: .*Permission denied"):
        load_once(home, path)


def test_no_file_is_told_as_ever(home: Home, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load_once(home, tmp_path / "none.onnx")
    assert not (home.cache / "canonical").exists()
