"""The same seed gives the same candidates, however often a search is interrupted."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from autoq.core.choices import Calibration, Format
from autoq.exporting import Silent
from autoq.search.anchors import build_anchors
from autoq.search.engine import Plan, Services, run_search
from autoq.search.goals import Constraints, Goals, Objective
from autoq.search.records import SearchRecord, SearchState
from autoq.search.space_building import build_space
from autoq.search.space_rules import LayerRule, SpaceRules, SparsityRange
from autoq.testing.memory_ledger import InMemoryLedger
from autoq.testing.synthetic import SyntheticRunner, SyntheticTarget, synthetic_baseline, synthetic_layers

N_TRIALS = 14


def proposed(
    strategy: str, seed: int, n_layers: int, interruptions: list[int]
) -> list[tuple[str, dict[str, object]]]:
    """Run a search that ends early at each of the given numbers of trials, and then to its end."""
    rules = SpaceRules(
        (
            LayerRule(
                "*",
                formats=(Format.FP32, Format.INT8, Format.INT8_S8),
                calibrations=(Calibration.MINMAX, Calibration.ENTROPY),
                weight_bits=(4, 8),
                sparsity=SparsityRange(0.4, 0.2),
            ),
        ),
        (),
        (),
    )
    layers, target = synthetic_layers(n_layers), SyntheticTarget()
    space = build_space(rules, layers, (), target)
    anchors = tuple(build_anchors(space, rules, layers, target))
    goals = Goals((Objective.ACCURACY, Objective.LATENCY), Constraints(max_accuracy_drop=0.05))
    plan = Plan(goals, space, anchors, strategy, N_TRIALS, seed)
    record = SearchRecord("search", {}, "0", SearchState.RUNNING, baseline=synthetic_baseline())
    ledger = InMemoryLedger()
    ledger.create_search(record)
    for n_trials in sorted(interruptions):
        services = Services(
            ledger,
            SyntheticRunner(),
            Silent(),
            should_stop=lambda n=n_trials: len(ledger.load_trials("search")) >= n,  # type: ignore[misc]
        )
        run_search(record, plan, services)
    run_search(record, plan, Services(ledger, SyntheticRunner(), Silent()))
    return [(trial.digest, dict(trial.params)) for trial in ledger.load_trials("search")]


@settings(max_examples=12, deadline=None)
@given(
    strategy=st.sampled_from(["tpe", "nsga2", "random"]),
    seed=st.integers(0, 2**32 - 1),
    n_layers=st.integers(1, 4),
    interruptions=st.lists(st.integers(0, N_TRIALS), max_size=3),
)
def test_the_same_seed_gives_the_same_candidates(
    strategy: str, seed: int, n_layers: int, interruptions: list[int]
) -> None:
    whole = proposed(strategy, seed, n_layers, [])
    assert len(whole) >= N_TRIALS
    assert proposed(strategy, seed, n_layers, interruptions) == whole
