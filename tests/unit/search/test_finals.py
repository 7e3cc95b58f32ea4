from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from autoq.core.choices import Candidate
from autoq.core.errors import TrialError
from autoq.search.finals import run_finals
from autoq.search.outcome import build_outcome, finalists
from autoq.search.records import FinalMeasurement, SearchState
from autoq.testing.synthetic import SyntheticRunner

MakeBench = Callable[..., Any]


@pytest.fixture
def searched(make_bench: MakeBench) -> Any:
    bench = make_bench("tpe", n_trials=30)
    bench.run()
    return bench


def test_the_finalists_are_measured_once_and_the_search_is_finished(searched: Any) -> None:
    record = searched.record.but(message="30 trials are done")
    outcome = run_finals(record, searched.plan, searched.services(), limit=5)
    chosen = finalists(build_outcome(searched.record, searched.plan.goals, searched.trials), 5)
    assert searched.runner.finals == [point.trial.digest for point in chosen]
    assert [final.digest for final in searched.ledger.load_finals("bench")] == searched.runner.finals
    assert searched.ledger.load_search("bench").state is SearchState.FINISHED
    assert outcome.record == record.but(state=SearchState.FINISHED)
    assert outcome.best is not None
    assert outcome.best.test is not None


@pytest.mark.parametrize("n_done", [0, 1, 4])
def test_an_interrupted_round_resumes_where_it_was(searched: Any, n_done: int) -> None:
    stopping = searched.services(should_stop=lambda: len(searched.ledger.load_finals("bench")) >= n_done)
    run_finals(searched.record, searched.plan, stopping, limit=5)
    record = searched.ledger.load_search("bench")
    assert (record.state, record.message) == (SearchState.INTERRUPTED, "interrupted in the final round")
    assert len(searched.runner.finals) == n_done
    run_finals(searched.record, searched.plan, searched.services(), limit=5)
    assert len(searched.runner.finals) == len(set(searched.runner.finals)) == 5
    assert searched.ledger.load_search("bench").state is SearchState.FINISHED


def test_a_kill_in_a_final_keeps_those_before(searched: Any) -> None:
    class Killed(SyntheticRunner):
        def run_final(self, candidate: Candidate) -> FinalMeasurement:
            if len(self.finals) == 2:
                raise KeyboardInterrupt
            return super().run_final(candidate)

    searched.runner = Killed()
    with pytest.raises(KeyboardInterrupt):
        run_finals(searched.record, searched.plan, searched.services())
    assert len(searched.ledger.load_finals("bench")) == 2
    assert searched.ledger.load_search("bench").state is SearchState.RUNNING


def test_a_finalist_that_fails_keeps_the_measurement_of_its_trial(searched: Any) -> None:
    class Flaky(SyntheticRunner):
        def run_final(self, candidate: Candidate) -> FinalMeasurement:
            raise TrialError("the child died")

    before = build_outcome(searched.record, searched.plan.goals, searched.trials)
    searched.runner = Flaky()
    outcome = run_finals(searched.record, searched.plan, searched.services(), limit=2)
    assert [p.measurement for p in outcome.front] == [p.measurement for p in before.front]
    assert searched.ledger.load_finals("bench") == []
    assert outcome.record.state is SearchState.FINISHED
    assert len(searched.listener.notes) == 2
    assert "keeps its first measurement: TrialError: the child died" in searched.listener.notes[0]


def test_a_point_that_fresh_timings_made_the_best_is_checked_after_an_interruption_too(searched: Any) -> None:
    class Slowing(SyntheticRunner):
        def run_final(self, candidate: Candidate) -> FinalMeasurement:
            final = super().run_final(candidate)
            is_first = len(self.finals) == 1
            return replace(final, latency=replace(final.latency, latency_ms=100.0)) if is_first else final

    searched.runner = Slowing()
    stopping = searched.services(should_stop=lambda: len(searched.ledger.load_finals("bench")) == 1)
    run_finals(searched.record, searched.plan, stopping, limit=1)
    outcome = run_finals(searched.record, searched.plan, searched.services(), limit=1)
    assert outcome.record.state is SearchState.FINISHED
    assert outcome.best is not None
    assert outcome.best.trial.digest in {final.digest for final in searched.ledger.load_finals("bench")}
    assert outcome.best.test is not None
