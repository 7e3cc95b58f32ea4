"""Narrower float models by way of the home: deterministic, read where they were made before."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from autoq.assembly.sequential_refit import SequentialRefitter
from autoq.calibrating import Calibrator
from autoq.core.choices import Criterion, Refit, Rewrites, Widths
from autoq.core.data import Array, Batch, Feed, Split
from autoq.core.errors import UnknownNameError
from autoq.derived import derive_once, derived_vectors
from autoq.exporting import Silent
from autoq.graph.float_model import FloatModel, build_float_model
from autoq.graph.rewriting import RewriteVectors, replay_rewrites
from autoq.graph.torch_gradients import OutputLoss
from autoq.home import Home
from autoq.narrowing import Refitting
from autoq.scoring import Scoring
from autoq.spec.schema import TorchModelSpec
from autoq.testing.models import GraphBuilder, example_feed

WIDTHS: Widths = (("block.conv1", 16), ("stem", 24))


def wide_cnn() -> onnx.ModelProto:
    net = GraphBuilder(seed=1)
    image = net.input("image", "batch", 3, 12, 12)
    x = net.node("Relu", net.conv(image, "stem", (3, 32)))
    y = net.node("Relu", net.conv(x, "block.conv1", (32, 32)))
    x = net.node("Relu", net.node("Add", net.conv(y, "block.conv2", (32, 32)), x))
    return net.build(logits=(net.classify(x, 32, 4), ("batch", 4)))


@pytest.fixture(scope="module")
def model() -> FloatModel:
    return build_float_model(ir.from_proto(wide_cnn()))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.open(tmp_path)


def calibrator(home: Home) -> Calibrator:
    split = Split((Batch(example_feed(wide_cnn(), n_examples=16, seed=0)),))
    return Calibrator(home, split, {"runtime_version": "any"}, Silent())


def refitting(model: FloatModel, home: Home) -> Refitting:
    return Refitting(model, home, calibrator(home), Silent())


def refuse(model: FloatModel, rewrites: Rewrites) -> RewriteVectors:
    raise AssertionError("narrowed again")


def test_equal_widths_give_equal_bytes_with_and_without_the_caches(model: FloatModel, home: Home) -> None:
    rewrites = Rewrites(widths=WIDTHS)
    first = derive_once(home, model, rewrites, calibrator(home), refitting(model, home).narrow)
    again = derive_once(home, model, rewrites, calibrator(home), refuse)
    shutil.rmtree(home.cache)
    fresh = derive_once(home, model, rewrites, calibrator(home), refitting(model, home).narrow)
    for source in (again, fresh):
        assert source.model.artifact.digest == first.model.artifact.digest
        assert source.statistics_key == first.statistics_key
        assert replay_rewrites(model, source.vectors).artifact.digest == first.model.artifact.digest


def test_what_was_kept_is_told_without_data(model: FloatModel, home: Home) -> None:
    rewrites = Rewrites(widths=WIDTHS)
    key = calibrator(home).key
    assert derived_vectors(home, model, rewrites, key) is None
    derive_once(home, model, rewrites, calibrator(home), refitting(model, home).narrow)
    vectors = derived_vectors(home, model, rewrites, key)
    assert vectors is not None
    assert {name: len(units) for name, units in vectors.kept.items()} == dict(WIDTHS)


def test_layers_have_the_widths_that_were_asked_for(model: FloatModel, home: Home) -> None:
    source = derive_once(
        home, model, Rewrites(widths=WIDTHS), calibrator(home), refitting(model, home).narrow
    )
    shapes = {layer.name: layer.weight_shape[:2] for layer in source.model.summary.layers}
    assert shapes["stem"] == (24, 3)
    assert shapes["block.conv1"] == (16, 24)
    assert shapes["block.conv2"] == (24, 16)


def test_a_narrowed_model_is_equalised_after_it_was_narrowed(model: FloatModel, home: Home) -> None:
    both = derive_once(
        home, model, Rewrites(True, None, WIDTHS), calibrator(home), refitting(model, home).narrow
    )
    narrow = derive_once(
        home, model, Rewrites(widths=WIDTHS), calibrator(home), refitting(model, home).narrow
    )
    assert both.model.summary.digest != narrow.model.summary.digest
    assert replay_rewrites(model, both.vectors).artifact.digest == both.model.artifact.digest
    assert all(np.array_equal(both.vectors.kept[name], units) for name, units in narrow.vectors.kept.items())


def test_a_sequential_refit_comes_closer_to_the_float_model_and_all_of_it_is_replayed(
    model: FloatModel, home: Home
) -> None:
    feed = example_feed(wide_cnn(), n_examples=64, seed=1)  # none that it was refitted on
    found = {}
    for refit in Refit:
        rewrites = Rewrites(widths=WIDTHS, refit=refit)
        source = derive_once(home, model, rewrites, calibrator(home), refitting(model, home).narrow)
        found[refit] = outputs_of(source.model, feed)
    wanted = outputs_of(model, feed)
    errors = {refit: float(np.square(outputs - wanted).mean()) for refit, outputs in found.items()}
    assert 0.0 < errors[Refit.SEQUENTIAL] < errors[Refit.NESTED]
    narrower, widths = refitting(model, home).narrower, dict(WIDTHS)
    refitter = SequentialRefitter(model, calibrator(home).calibration)
    whole = refitter.refit(narrower.narrow(widths), narrower.kept_outputs(widths))
    np.testing.assert_allclose(found[Refit.SEQUENTIAL], outputs_of(whole, feed), atol=1e-6)


def outputs_of(model: FloatModel, feed: Feed) -> Array:
    session = onnxruntime.InferenceSession(model.artifact.content)
    outputs: Array = session.run(None, dict(feed))[0]
    return outputs


def test_snapshots_are_read_where_they_were_kept(
    model: FloatModel, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = refitting(model, home).narrow(model, Rewrites(widths=WIDTHS))

    def refuse_to_build(*arguments: object) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr("autoq.narrowing.build_narrower", refuse_to_build)
    again = refitting(model, home).narrow(model, Rewrites(widths=WIDTHS))
    assert first.constants.keys() == again.constants.keys()
    assert all(np.array_equal(first.constants[place], again.constants[place]) for place in first.constants)


def test_criteria_of_one_home_have_models_of_their_own(model: FloatModel, home: Home) -> None:
    found = {}
    for criterion in (Criterion.OBS, Criterion.MAGNITUDE, Criterion.ACTIVATION, Criterion.OBS):
        rewrites = Rewrites(widths=WIDTHS, criterion=criterion)
        asked = Refitting(model, home, calibrator(home), Silent(), Scoring(criterion))
        source = derive_once(home, model, rewrites, calibrator(home), asked.narrow)
        kept = [tuple(units) for units in source.vectors.kept.values()]
        assert found.setdefault(criterion, (source.model.artifact.digest, kept))[1] == kept
    assert len({digest for digest, _ in found.values()}) == 3
    assert len({str(kept) for _, kept in found.values()}) == 3
    assert len(list((home.cache / "snapshots").iterdir())) == 3
    with pytest.raises(ValueError, match="another criterion"):
        refitting(model, home).narrow(model, Rewrites(widths=WIDTHS, criterion=Criterion.MAGNITUDE))


TIED = """
import numpy as np
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(0)
        self.first, self.tied, self.last = (torch.nn.Linear(16, size, bias=False) for size in (16, 16, 4))
        for layer in (self.first, self.tied, self.last):
            drawn = rng.standard_normal(tuple(layer.weight.shape)).astype(np.float32)
            layer.weight = torch.nn.Parameter(torch.from_numpy(drawn))

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(torch.relu(self.tied(torch.relu(self.tied(x)))))
"""


def tied_case(folder: Path) -> tuple[FloatModel, Scoring]:
    """A module that uses a layer twice, and the model that an exporter would make of it."""
    (folder / "net.py").write_text(TIED)
    net, rng = GraphBuilder(), np.random.default_rng(0)
    sizes = {"first": 16, "tied": 16, "last": 4}
    drawn = {name: rng.standard_normal((size, 16)).astype(np.float32).T for name, size in sizes.items()}
    first, tied, last = (net.constant(name, weight) for name, weight in drawn.items())
    x = net.node("Relu", net.node("MatMul", net.input("x", "batch", 16), first))
    for weight in (tied, net.constant("copy", drawn["tied"])):  # transposes are folded at each use
        x = net.node("Relu", net.node("MatMul", x, weight))
    built = net.build(y=(net.node("MatMul", x, last), ("batch", 4)))
    example = {"x": {"shape": ["batch", 16]}}
    spec = TorchModelSpec.model_validate({"torch": f"{folder / 'net.py'}:Net", "example": example})
    loss = OutputLoss(0, 1, is_class_scores=True)
    scoring = Scoring(Criterion.FISHER, spec, loss, "cross entropy of y")
    return build_float_model(ir.from_proto(built)), scoring


def test_groups_without_gradients_are_ordered_by_obs_and_one_note_says_how_many_and_why(
    home: Home, tmp_path: Path
) -> None:
    model, scoring = tied_case(tmp_path)
    feed = {"x": np.random.default_rng(0).standard_normal((24, 16)).astype(np.float32)}
    listener = Hearing()
    calibrated = Calibrator(home, Split((Batch(feed),)), {"runtime_version": "any"}, listener)
    by_fisher = Refitting(model, home, calibrated, listener, scoring).narrower
    by_obs = Refitting(model, home, calibrated, listener).narrower
    assert listener.notes_of_widths == [
        "widths: 2 of 3 channel groups are ordered by OBS, not by Fisher scores: "
        "a weight that reads it is shared by several layers (2)"
    ]
    same = {
        name: bool((one.order == by_obs.snapshots[name].order).all())
        for name, one in by_fisher.snapshots.items()
    }
    assert list(same.values()) == [True, True, False]
    shutil.rmtree(home.snapshots("any").parent)
    anew = Refitting(model, home, calibrated, Silent(), scoring).narrower
    assert all((one.order == by_fisher.snapshots[name].order).all() for name, one in anew.snapshots.items())
    again = Refitting(model, home, calibrated, listener, scoring).narrower
    assert all((one.order == by_fisher.snapshots[name].order).all() for name, one in again.snapshots.items())
    assert len(listener.notes_of_widths) == 1


class Hearing(Silent):
    """A listener that keeps what it is told of widths."""

    def __init__(self) -> None:
        self.notes_of_widths: list[str] = []

    def on_note(self, text: str) -> None:
        if text.startswith("widths: "):
            self.notes_of_widths.append(text)


def test_widths_off_the_grid_and_unknown_groups_are_refused(model: FloatModel, home: Home) -> None:
    with pytest.raises(UnknownNameError, match=r"'stem' has no width 5 \(its widths: 8, 16, 24, 32\)"):
        refitting(model, home).narrow(model, Rewrites(widths=(("stem", 5),)))
    with pytest.raises(UnknownNameError, match="no channel group 'other'"):
        refitting(model, home).narrow(model, Rewrites(widths=(("other", 8),)))
