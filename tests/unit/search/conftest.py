"""A small search made of arithmetic, and the ways to run it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from autoq.core.choices import Calibration, Candidate, Format, Precision
from autoq.core.layers import OpFamily
from autoq.search.anchors import build_anchors
from autoq.search.engine import Plan, Services, Stop, run_search
from autoq.search.goals import Constraints, Goals, Objective
from autoq.search.ports import Progress, TrialHook
from autoq.search.records import SearchRecord, SearchState, TrialRecord
from autoq.search.space_building import build_space
from autoq.search.space_rules import (
    AnchorLayerRule,
    AnchorRule,
    GraphRule,
    LayerRule,
    SpaceRules,
    SparsityRange,
)
from autoq.search.strategies import GUIDED
from autoq.testing.memory_ledger import InMemoryLedger
from autoq.testing.synthetic import (
    SyntheticRunner,
    SyntheticTarget,
    synthetic_baseline,
    synthetic_layers,
    synthetic_ops,
)
from autoq.testing.synthetic_guide import synthetic_guide

sys.path.append(str(Path(__file__).parent))  # small_guides

GOALS = Goals((Objective.ACCURACY, Objective.LATENCY), Constraints(max_accuracy_drop=0.05))


@dataclass
class RecordingListener:
    """Keeps what it was told."""

    phases: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    started: list[int] = field(default_factory=list)
    ended: list[TrialRecord] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)

    def on_phase(self, name: str, detail: str) -> None:
        self.phases.append((name, detail))

    def on_note(self, text: str) -> None:
        self.notes.append(text)

    def on_trial_start(self, number: int, origin: str) -> None:
        self.started.append(number)

    def on_trial_end(self, trial: TrialRecord, progress: Progress) -> None:
        self.ended.append(trial)
        self.progress.append(progress)


@dataclass
class Bench:
    """One search over arithmetic, with the ledger it is kept in."""

    plan: Plan
    record: SearchRecord
    ledger: InMemoryLedger
    runner: SyntheticRunner
    listener: RecordingListener

    def run(
        self,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        hooks: Sequence[TrialHook] = (),
        **changes: Any,
    ) -> Stop:
        services = self.services(should_stop=should_stop, hooks=hooks)
        return run_search(self.record, replace(self.plan, **changes), services)

    def services(self, **changes: Any) -> Services:
        return Services(self.ledger, self.runner, self.listener, **changes)

    def stop_at(self, n_trials: int) -> Callable[[], bool]:
        """Ctrl-C once the ledger holds so many trials."""
        return lambda: len(self.trials) >= n_trials

    @property
    def trials(self) -> list[TrialRecord]:
        return self.ledger.load_trials(self.record.name)

    @property
    def digests(self) -> list[str]:
        return [trial.digest for trial in self.trials]


def build_bench(
    strategy: str = "random",
    *,
    n_layers: int = 3,
    n_trials: int = 24,
    goals: Goals = GOALS,
    fail: Callable[[Candidate], str] = lambda candidate: "",
    **plan: Any,
) -> Bench:
    rules = SpaceRules(
        (
            LayerRule(
                "*",
                formats=(Format.FP32, Format.INT8, Format.INT8_S8),
                calibrations=(Calibration.MINMAX, Calibration.PERCENTILE_99_99),
                weight_bits=(4, 8),
                sparsity=SparsityRange(0.4, 0.2),
            ),
        ),
        (GraphRule(OpFamily.ADD, "*", (Precision.INT8, Precision.FLOAT)),),
        # Outside the space: no rule lists its format.
        (AnchorRule("mine", (AnchorLayerRule("*", Format.INT8_DYNAMIC),)),),
    )
    layers, target = synthetic_layers(n_layers), SyntheticTarget()
    space = build_space(rules, layers, synthetic_ops(), target)
    anchors = tuple(build_anchors(space, rules, layers, target))
    record = SearchRecord("bench", {}, "0", SearchState.RUNNING, baseline=synthetic_baseline())
    ledger = InMemoryLedger()
    ledger.create_search(record)
    if strategy == GUIDED:
        plan.setdefault("guide", synthetic_guide(space, SyntheticRunner(fail)))
    return Bench(
        Plan(goals, space, anchors, strategy, n_trials, **plan),
        record,
        ledger,
        SyntheticRunner(fail),
        RecordingListener(),
    )


@pytest.fixture
def make_bench() -> Callable[..., Bench]:
    """Build a search: `make_bench(strategy, n_layers=, n_trials=, goals=, fail=, **plan)`."""
    return build_bench
