"""A guided search of a real model, and the guide that it leaves for the next one."""

from __future__ import annotations

import json
import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_case import NAME, ledger_of, run_autoq, write_case, write_spec

from autoq.core.choices import Candidate
from autoq.exporting import Silent
from autoq.guiding import build_guide
from autoq.home import Home
from autoq.preparation import prepare, prepare_sources, prepare_variants
from autoq.search.guide import Guide
from autoq.search.records import TrialRecord, TrialState
from autoq.spec.loading import load_spec
from autoq.testing.synthetic import SyntheticRunner

N_TRIALS = 9
# Few enough kernels for a short guide, and an int8 that every CPU runs without saturating.
SPACE = {
    "version": 1,
    "layers": {"*": {"format": ["fp32", "int8"], "calibration": ["minmax", "mse"], "weight_bits": [4, 7]}},
    "graph": {"add": ["int8", "float"]},
}
CHANGES = {"search.strategy": "guided", "search.trials": N_TRIALS, "space": SPACE}


@dataclass(frozen=True)
class Guided:
    spec: Path
    home: Path
    stderr: str

    @property
    def guides(self) -> list[Path]:
        return sorted((self.home / "cache" / "guides").glob("*.json"))

    @property
    def trials(self) -> list[TrialRecord]:
        with ledger_of(self.home) as ledger:
            return ledger.load_trials(NAME)

    def again(self, name: str) -> str:
        """Search the same model for as long as its anchors take; return what was said."""
        changes = {**CHANGES, "name": name, "search.trials": 1}
        spec = write_spec(self.spec.parent, changes, file=f"{name}.yaml")
        ran = run_autoq("search", spec, "--home", self.home)
        assert ran.returncode == 0, ran.stderr
        return ran.stderr


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> Guided:
    folder = tmp_path_factory.mktemp("guided")
    spec, home = write_case(folder, CHANGES), folder / "home"
    ran = run_autoq("search", spec, "--home", home)
    assert ran.returncode == 0, ran.stderr
    return Guided(spec, home, ran.stderr)


def test_every_trial_is_new_and_says_why_it_was_tried(guided: Guided) -> None:
    trials = guided.trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * N_TRIALS
    assert len({trial.digest for trial in trials}) == N_TRIALS
    kinds = [trial.reasons["kind"] for trial in trials]
    n_anchors = kinds.count("anchor")
    assert kinds[:n_anchors] == ["anchor"] * n_anchors
    assert 3 <= n_anchors < N_TRIALS
    assert set(kinds[n_anchors:]) <= {"seed", "genes", "flip"}
    for trial in trials[n_anchors:]:
        assert trial.origin == f"guided {trial.reasons['kind']}"
        assert trial.reasons["why"]
        assert trial.reasons["predicted_latency_ms"] > 0.0
        assert trial.reasons["predicted_bundle_bytes"] > 0


def test_the_size_of_the_bundle_is_foretold(guided: Guided) -> None:
    for trial in guided.trials:
        if "predicted_bundle_bytes" in trial.reasons:
            assert trial.measurement is not None
            measured = trial.measurement.size.bundle_bytes
            assert trial.reasons["predicted_bundle_bytes"] == pytest.approx(
                measured, rel=0.3
            )  # one factor for all


def test_the_guide_is_measured_once_and_told_of(guided: Guided) -> None:
    n_probes = re.search(r"guide: sensitivity: (\d+) models", guided.stderr)
    n_timings = re.search(r"guide: latency: (\d+) mixed models", guided.stderr)
    assert n_probes is not None
    assert n_timings is not None
    (path,) = guided.guides
    guide = Guide.from_json(json.loads(path.read_text()))
    assert len(guide.error_probes) == int(n_probes[1])
    assert len(guide.latency_probes) == int(n_timings[1])
    assert all(probe.divergence > 0.0 for probe in guide.error_probes)
    assert {slot.name for slot in guide.usual if slot.is_layer} == {
        "stem",
        "block.conv1",
        "block.conv2",
        "fc",
    }
    assert {(one.writer, one.reader) for one in guide.borders} >= {("stem", "block.conv1")}
    assert "fp32" in guide.kernel_ratios["stem"]


def test_another_search_of_the_model_reuses_the_guide_and_a_damaged_one_is_measured_anew(
    guided: Guided,
) -> None:
    (path,) = guided.guides
    whole = path.read_text()
    said = guided.again("second")
    assert re.search(r"guide: reused, \d+ probes of errors and \d+ of latency", said)
    assert "guide: sensitivity" not in said
    assert path.read_text() == whole

    path.write_text(whole[: len(whole) // 2])
    said = guided.again("third")
    assert "guide: reused" not in said
    assert "guide: sensitivity" in said
    assert guided.guides == [path]
    assert len(Guide.from_json(json.loads(path.read_text())).error_probes) > 0


def test_every_candidate_of_the_space_is_a_stitch_of_the_guide(guided: Guided) -> None:
    (path,) = guided.guides
    guide = Guide.from_json(json.loads(path.read_text()))
    for trial in guided.trials:
        stitch = guide.stitch(trial.candidate)
        assert stitch is not None
        assert guide.candidate(stitch) == trial.candidate


def test_a_probe_that_fails_is_left_out_and_the_guide_says_what_it_can(
    guided: Guided, tmp_path: Path
) -> None:
    spec, home = load_spec(guided.spec), Home.open(tmp_path)
    ready = prepare(spec, home, Silent())
    sources = prepare_sources(ready, home, Silent())
    prepare_variants(ready, sources, home, Silent())

    def every_other(candidate: Candidate) -> str:
        return "no memory" if int(candidate.digest, 16) % 2 else ""

    guide = build_guide(ready, sources, home, SyntheticRunner(every_other), Silent())
    whole = Guide.from_json(json.loads(guided.guides[0].read_text()))
    assert guide.usual == whole.usual
    assert guide.borders == whole.borders
    assert 0 < len(guide.error_probes) < len(whole.error_probes)
    assert 0 < len(guide.latency_probes) < 12
    assert not any(int(one.candidate.digest, 16) % 2 for one in guide.latency_probes)

    again = build_guide(ready, sources, home, SyntheticRunner(lambda candidate: "gone"), Silent())
    assert again == guide


def test_a_search_that_waited_for_another_of_its_model_takes_the_guide_of_that(
    tmp_path: Path,
) -> None:
    spec, home = load_spec(write_case(tmp_path, CHANGES)), Home.open(tmp_path / "home")
    ready = prepare(spec, home, Silent())
    sources = prepare_sources(ready, home, Silent())
    prepare_variants(ready, sources, home, Silent())
    theirs: list[Guide] = []

    class Waiting(SyntheticRunner):
        def turn(self) -> AbstractContextManager[object]:
            theirs.append(build_guide(ready, sources, home, SyntheticRunner(), Silent()))
            return nullcontext()

    ours = build_guide(ready, sources, home, Waiting(lambda candidate: "measured twice"), Silent())
    assert theirs == [ours]
    assert ours.error_probes
