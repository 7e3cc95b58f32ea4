"""The final round: who is on the front is decided on fresh, longer timings."""

from __future__ import annotations

from autoq.core.errors import TrialError
from autoq.search.engine import Plan, Services, reason_of
from autoq.search.outcome import Outcome, Point, build_outcome, finalists
from autoq.search.records import FinalMeasurement, SearchRecord, SearchState

MAX_FINALISTS = 12


def run_finals(
    record: SearchRecord, plan: Plan, services: Services, *, limit: int = MAX_FINALISTS
) -> Outcome:
    """Measure the front and its neighbours afresh and longer, then mark the search finished.

    Each measurement is saved when it is made; what an earlier session saved is not measured again.
    A finalist that fails keeps the measurement of its trial. Interrupted, the record says so.

    Raises:
        InfrastructureError: The store or the target went away; what is saved can be resumed.
    """
    trials = services.ledger.load_trials(record.name)
    # Chosen by the trials alone, so that a resumed round has the same finalists.
    chosen = finalists(build_outcome(record, plan.goals, trials), limit)
    finals = {final.digest: final for final in services.ledger.load_finals(record.name)}
    waiting = [point for point in chosen if point.trial.digest not in finals]
    tried = {*finals, *(point.trial.digest for point in chosen)}
    ended = record.but(state=SearchState.FINISHED)
    while True:
        if not waiting:
            # Fresh timings may make another point the best: it is not to be shipped unchecked.
            best = build_outcome(record, plan.goals, trials, list(finals.values())).best
            if best is None or best.trial.digest in tried:
                break
            waiting.append(best)
            tried.add(best.trial.digest)
        if services.should_stop():
            ended = record.but(state=SearchState.INTERRUPTED, message="interrupted in the final round")
            break
        point = waiting.pop(0)
        place = f"{len(tried) - len(waiting)} of {len(tried)}"
        services.listener.on_phase("final round", f"{place}: trial {point.trial.number}")
        if final := _measured(point, services):
            finals[final.digest] = final
            services.ledger.save_finals(record.name, list(finals.values()))
    services.ledger.update_search(ended)
    return build_outcome(ended, plan.goals, trials, list(finals.values()))


def _measured(point: Point, services: Services) -> FinalMeasurement | None:
    try:
        return services.runner.run_final(point.trial.candidate)
    except TrialError as error:
        services.listener.on_note(
            f"final round: trial {point.trial.number} keeps its first measurement: {reason_of(error)}"
        )
        return None
