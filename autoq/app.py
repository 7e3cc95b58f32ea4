"""The composition root: the one place that picks concrete parts and wires them."""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any

from autoq.calibrating import Source, SourceKeys, build_candidate
from autoq.core.choices import Candidate, Rewrites, Rounding
from autoq.core.digests import canonical_json
from autoq.core.errors import (
    AutoqError,
    ModelError,
    StoreError,
    UnknownNameError,
    UserError,
)
from autoq.core.files import is_abandoned, is_unfinished
from autoq.core.measurements import Baseline
from autoq.estimating import Estimate, estimate_cost
from autoq.evaluation.clock import machine_clock
from autoq.execution.memory import garbage_frozen
from autoq.execution.runner import ChildTrialRunner
from autoq.execution.worker import ChildProcess
from autoq.guiding import build_guide
from autoq.home import Home
from autoq.launching import launch_trials
from autoq.preparation import (
    Preparation,
    foresee_sources,
    keys_of,
    open_runner,
    prepare,
    prepare_sources,
    prepare_variants,
    timed,
)
from autoq.recording import StudyHook, TrackingHook
from autoq.search.engine import Plan, Services, Stop, run_search
from autoq.search.finals import run_finals
from autoq.search.guide import Guide
from autoq.search.outcome import Outcome, Point, build_outcome
from autoq.search.ports import SearchListener, TrialRunner
from autoq.search.records import SearchRecord, SearchState, TrialRecord
from autoq.search.strategies import GUIDED
from autoq.spec.loading import spec_digest, spec_from_json
from autoq.spec.schema import SearchSpec
from autoq.storage.engine import locked
from autoq.storage.ledger import SqlLedger

if TYPE_CHECKING:
    from autoq.examining import Doctor
    from autoq.reporting.comparison import Comparison
    from autoq.reporting.pictures import Content
    from autoq.tracking.mlflow_tracking import MlflowTracker
    from autoq.tracking.onnx_model import DeployedModel
    from autoq.tracking.resilient import ResilientTracker

_log = logging.getLogger("autoq")

# A baseline's latency and noise floor are of their hour: a machine gets busier, warmer, quieter.
_BASELINE_KEEPS_S = 3600.0
_UNSTEADY = 0.05  # a noise floor that absolute latencies cannot be told on


@dataclass(frozen=True)
class CacheUse:
    """What one of the home's caches holds."""

    name: str
    n_files: int
    n_bytes: int


class App:
    """Everything a command can ask for. Views pass a listener; nothing here prints."""

    def __init__(self, home: Path) -> None:
        """Open the home and its store.

        Raises:
            StoreError: The home cannot be written, or the database cannot be reached.
        """
        self.home = Home.open(home)
        self.ledger = SqlLedger(self.home.storage_url)

    def close(self) -> None:
        """Let go of the store."""
        self.ledger.close()

    # --- searching -------------------------------------------------------------------------------

    def estimate(self, spec: SearchSpec, listener: SearchListener) -> Estimate:
        """Prepare as a search would, measure nothing, store nothing, and say what it would cost."""
        return estimate_cost(prepare(spec, self.home, listener))

    def search(
        self,
        spec: SearchSpec,
        listener: SearchListener,
        *,
        resume: bool = False,
        should_stop: Callable[[], bool] = lambda: False,
        on_estimate: Callable[[Estimate], None] = lambda estimate: None,
        launched: ChildProcess[Any] | None = None,
    ) -> Outcome:
        """Search a model, or return the outcome of the same search when it is finished already.

        Args:
            spec: What to search.
            listener: Told what happens.
            resume: Whether to go on with a search that is there.
            should_stop: Asked between measurements.
            on_estimate: Told what the search will cost.
            launched: Process of the trials, from `launch_trials`, where the caller started it ahead.

        Raises:
            UserError: Whatever the user can mend, before anything is stored.
            InfrastructureError: The store or the target went away; `resume=True` goes on.
        """
        known = self.ledger.load_search(spec.name)
        self._check_name(spec, known, resume=resume)
        with closing(launched or launch_trials(self.home.root)) as child:
            ready = prepare(spec, self.home, listener)
            if known is not None:
                _check_same_measure(known, ready)
                self._follow_files(known, ready)
                if known.state is SearchState.FINISHED and not resume:
                    listener.on_note(
                        f"search {spec.name!r} is finished already, this is what it found; "
                        "--resume with more trials goes on"
                    )
                    return self.outcome(spec.name)
            with self._owning(spec.name):
                known = self.ledger.load_search(spec.name)
                if known is not None:  # preparing takes a while, in which others may have been at it
                    self._check_name(spec, known, resume=resume)
                    _check_same_measure(known, ready)
                ready.baseline = known.baseline if known else self._recent_baseline(ready, listener)
                on_estimate(estimate_cost(ready))
                return self._run(ready, known, child, listener, should_stop)

    def _follow_files(self, known: SearchRecord, ready: Preparation) -> None:
        """Note where model and data lie now: exports look for them there."""
        spec = ready.spec.to_json()
        places = {part: spec[part] for part in ("model", "data", "metric")}
        if {**known.spec, **places} == known.spec:
            return
        with suppress(StoreError), self._owning(known.name):  # whoever runs it now knows places of its own
            if (latest := self.ledger.load_search(known.name)) is not None:
                self.ledger.update_search(latest.but(spec={**latest.spec, **places}))

    @contextmanager
    def _owning(self, name: str) -> Iterator[None]:
        """Keep other processes out of a search for as long as this one runs or deletes it.

        Raises:
            StoreError: Another process is at it, in this home or in another one on the same store.
        """
        path = self.home.lock(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path, f"search {name!r} is being run by another process"), self.ledger.owning(name):
            yield

    def _check_name(self, spec: SearchSpec, known: SearchRecord | None, *, resume: bool) -> None:
        if known is None:  # nothing to resume: a search that starts is as good
            self.ledger.check_free(spec.name)
            return
        if spec_digest(spec_from_json(known.spec)) != spec_digest(spec):
            raise StoreError(
                f"search {spec.name!r} exists with another spec",
                hint="give the same flags as before to go on with it, or choose another name",
            )
        if not resume and known.state is not SearchState.FINISHED:
            raise StoreError(
                f"search {spec.name!r} exists and is {known.state}", hint="go on with it by --resume"
            )

    def _run(
        self,
        ready: Preparation,
        known: SearchRecord | None,
        child: ChildProcess[Any],
        listener: SearchListener,
        should_stop: Callable[[], bool],
    ) -> Outcome:
        spec = ready.spec
        tracker = self._tracker(listener)
        with ExitStack() as stack:
            # MLflow's import, and its first database, take seconds: beside a first search's calibration
            # they cost nothing, but they would be all that a second search waits for.
            is_prepared = ready.baseline is not None
            foreseen = foresee_sources(ready, self.home) if is_prepared else None
            if foreseen is not None:  # the process of the trials reads models while this one does
                runner = stack.enter_context(self.open_runner(ready, foreseen, child))
                runner.begin()
            warming = nullcontext(_do_nothing) if is_prepared else _meanwhile(tracker.prepare)
            with warming as wait_for_mlflow:
                sources = prepare_sources(ready, self.home, listener)
                prepare_variants(ready, sources, self.home, listener)
                if (keys := keys_of(sources)) != foreseen:
                    runner = stack.enter_context(self.open_runner(ready, keys, child))
                wait_for_mlflow()  # a clock is about to run
                record = self._resumed(ready, known) if known else self._started(ready, runner, listener)
            guide = None
            if spec.search.strategy == GUIDED:
                guide = build_guide(ready, sources, self.home, runner, listener)
                record = record.but(preparation_s=dict(ready.seconds))
            _log.info("preparation took %s", _seconds_text(ready.seconds))
            plan = _plan(ready, guide)
            tracking = TrackingHook(tracker, record, spec)
            if not is_prepared:
                with runner.turn():  # writing to MLflow must not disturb another search's timing
                    tracking.open()
            hooks = (StudyHook(self.home, record, plan), tracking)

            def build_ahead(candidate: Candidate) -> None:
                build_candidate(self.home, sources, candidate)

            services = Services(self.ledger, runner, listener, hooks, should_stop, build_ahead)
            with garbage_frozen():
                stop = run_search(record, plan, services)
            if stop.state is SearchState.FINISHED:
                outcome = run_finals(record.but(message=stop.message), plan, services)
            else:
                outcome = self.outcome(spec.name)
        _keep_layer_facts(ready, sources, self.home, listener)
        self._publish(outcome, stop, tracker, listener)
        return self.outcome(spec.name)

    def open_runner(
        self, ready: Preparation, sources: Mapping[Rewrites, SourceKeys], child: ChildProcess[Any]
    ) -> ChildTrialRunner:
        """Make the runner of a search's trials; a subclass may have them measured otherwise."""
        return open_runner(ready, sources, self.home, child)

    def _resumed(self, ready: Preparation, known: SearchRecord) -> SearchRecord:
        return known.but(spec=ready.spec.to_json())  # trials and budgets may have grown

    def _recent_baseline(self, ready: Preparation, listener: SearchListener) -> Baseline | None:
        """Return what another search has just measured of the same model, data, target and timing."""
        for record in reversed(self.ledger.list_searches()):
            if record.baseline is None:
                continue
            measured_at = record.baseline.measured_at or record.created_at  # it may itself be a reused one
            age_s = time.time() - measured_at
            is_steady = record.baseline.noise_floor <= _UNSTEADY
            if is_steady and age_s < _BASELINE_KEEPS_S and _is_same_measure(record, ready):
                listener.on_note(f"baseline: reused from search {record.name!r}, {age_s / 60:.0f} min old")
                return replace(record.baseline, measured_at=measured_at)
        return None

    def _started(self, ready: Preparation, runner: TrialRunner, listener: SearchListener) -> SearchRecord:
        """Measure the baseline, then store the search: what fails before that leaves nothing behind."""
        created_at, baseline = time.time(), ready.baseline
        with timed(ready.seconds, "baseline"):
            if baseline is None:
                listener.on_phase("baseline", "scoring and timing the float model, with its A/A control")
                baseline = replace(runner.measure_baseline(), measured_at=created_at)
                if baseline.noise_floor > _UNSTEADY:
                    listener.on_note(
                        "warning: this machine is busy or unsteady: timings of the float model differ by "
                        f"±{baseline.noise_floor:.1%}; speed-ups may still tell, milliseconds hardly do"
                    )
            else:
                with _meanwhile(_import_sampling), runner.turn():  # which waits for the process of the trials
                    pass
        _check_deterministic(baseline, ready.spec, listener)
        record = SearchRecord(
            name=ready.spec.name,
            spec=ready.spec.to_json(),
            spec_digest=spec_digest(ready.spec),
            state=SearchState.RUNNING,
            created_at=created_at,
            model_digest=ready.content_digest,
            environment=ready.environment,
            baseline=baseline,
            preparation_s=dict(ready.seconds),
        )
        self.ledger.create_search(record)
        return record

    def _publish(
        self, outcome: Outcome, stop: Stop, tracker: ResilientTracker, listener: SearchListener
    ) -> None:
        """Draw the plot, write the recipe of the best point, and bring MLflow up to date."""
        name = outcome.record.name
        artifacts = self.write_artifacts(outcome, listener.on_note)
        trials, model = self.ledger.load_trials(name), self._best_model(outcome, listener.on_note)
        with machine_clock():  # writing to MLflow must not disturb another search's timing
            tracker.finish_search(outcome.record, trials, outcome, artifacts, model)
        _log.info("search %s: %s", name, stop.message)
        listener.on_phase("done", stop.message)

    def _best_model(self, outcome: Outcome, on_note: Callable[[str], None]) -> DeployedModel | None:
        from autoq.exporting import deployed_model

        if outcome.best is None:
            return None
        try:
            return deployed_model(self.home, outcome, outcome.best, None)
        # Model or data went away, or another version of autoq took the search up: it still has its trials.
        except AutoqError as error:
            on_note(f"MLflow does not get the best model: {error}")
            return None

    def _tracker(self, listener: SearchListener) -> ResilientTracker:
        from autoq.tracking.resilient import ResilientTracker

        return ResilientTracker(self._plain_tracker(), listener.on_note)

    def _plain_tracker(self) -> MlflowTracker:
        from autoq.tracking.mlflow_tracking import MlflowTracker, locate_tracking

        return MlflowTracker(*locate_tracking(self.home.root, self.home.tracking_uri))

    # --- looking ---------------------------------------------------------------------------------

    def outcome(self, name: str) -> Outcome:
        """Derive what a search found from the store.

        Raises:
            UnknownNameError: No search has that name.
        """
        record = self.record(name)
        goals = spec_from_json(record.spec).goals
        return build_outcome(record, goals, self.ledger.load_trials(name), self.ledger.load_finals(name))

    def record(self, name: str) -> SearchRecord:
        """Return a search.

        Raises:
            UnknownNameError: No search has that name.
        """
        record = self.ledger.load_search(name)
        if record is None:
            known = ", ".join(search.name for search in self.ledger.list_searches()) or "none"
            raise UnknownNameError(f"no search named {name!r}", hint=f"known searches: {known}")
        return record

    def trials(self, name: str) -> list[TrialRecord]:
        """Return all trials of a search.

        Raises:
            UnknownNameError: No search has that name.
        """
        self.record(name)
        return self.ledger.load_trials(name)

    def searches(self) -> list[SearchRecord]:
        """Return all searches, oldest first."""
        return self.ledger.list_searches()

    def delete(self, name: str) -> None:
        """Remove a search and its artifacts; its runs in MLflow stay.

        Raises:
            UnknownNameError: No search has that name.
        """
        self.record(name)
        with self._owning(name):
            self.ledger.delete_search(name)
        shutil.rmtree(self.home.artifacts(name), ignore_errors=True)

    def write_artifacts(self, outcome: Outcome, on_note: Callable[[str], None]) -> dict[str, Path]:
        """Write report, pictures and recipe of a search into the home; return them by artifact name.

        `on_note` is told why there is no recipe, where the model cannot be built any more.
        """
        from autoq.exporting import write_recipe
        from autoq.reporting.writing import write_report

        if not outcome.points:
            return {}
        folder = self.home.artifacts(outcome.record.name)
        paths = write_report(self._report_content(outcome), folder)
        best = outcome.best or outcome.nearest
        if best is not None:
            try:
                paths |= write_recipe(self.home, outcome, best, folder)
            except AutoqError as error:
                on_note(f"no recipe is written: {error}")
        return paths

    def report(self, name: str, out: Path | None = None) -> dict[str, Path]:
        """Write the report of a search into a folder, the home's unless told otherwise; return its files.

        Raises:
            UserError: No such search, nothing is measured yet, or the folder cannot be written.
        """
        from autoq.reporting.writing import write_report

        outcome = self.outcome(name)
        if not outcome.points:
            raise UserError(f"search {name!r} has nothing to report yet", hint="no trial of it is measured")
        return write_report(self._report_content(outcome), out or self.home.artifacts(name))

    def compare(self, names: Sequence[str], out: Path | None = None) -> tuple[Comparison, dict[str, Path]]:
        """Compare the fronts of searches; write page and picture if a folder is given.

        Raises:
            UserError: No such search, one twice, or one without a front.
        """
        from autoq.reporting.comparison import check_names, compare
        from autoq.reporting.comparison_page import write_comparison

        check_names(names)
        comparison = compare([self.outcome(name) for name in names])
        return comparison, {} if out is None else write_comparison(comparison, out)

    def _report_content(self, outcome: Outcome) -> Content:
        from autoq.reporting.layer_facts import LAYER_FACTS_FILE, load_layer_facts
        from autoq.reporting.pictures import Content

        name = outcome.record.name
        layers = load_layer_facts(self.home.artifacts(name) / LAYER_FACTS_FILE)
        return Content(outcome, self.ledger.load_trials(name), layers)

    # --- taking away -----------------------------------------------------------------------------

    def export(
        self,
        name: str,
        select: str,
        out: Path,
        listener: SearchListener,
        *,
        bundle_format: str | None = None,
    ) -> Point:
        """Write a point of a search as a folder that deploys without autoq, and check what was written.

        `bundle_format` asks for a storage bundle beside the model: native, hdf5 or safetensors.

        Raises:
            UserError: No such point or format, or `out` is taken.
            UnfaithfulModel: What was written does not compute what was measured.
        """
        from autoq.export.bundle import BundleFormat
        from autoq.exporting import Destination, export_point

        bundle = None if bundle_format is None else BundleFormat.named(bundle_format)

        outcome = self.outcome(name)
        point = outcome.select(select)
        export_point(self.home, outcome, point, Destination(out, bundle), listener)
        return point

    def register(self, name: str, select: str, model_name: str, listener: SearchListener) -> int:
        """Register a point's model in MLflow's registry; return its version.

        Raises:
            UserError: No such point, or MLflow takes no such name.
            UnfaithfulModel: The rebuilt model is not the measured one.
            InfrastructureError: The tracking server cannot be reached.
        """
        from autoq.exporting import deployed_model

        outcome = self.outcome(name)
        model = deployed_model(self.home, outcome, outcome.select(select), listener)
        return self._plain_tracker().register(outcome.record, model, model_name)

    def sync(self, name: str, on_note: Callable[[str], None]) -> int:
        """Replay a search into MLflow; return the number of trials that were missing there.

        `on_note` is told what is not replayed because the model cannot be built any more.

        Raises:
            InfrastructureError: The tracking server cannot be reached.
        """
        outcome = self.outcome(name)
        artifacts, model = self.write_artifacts(outcome, on_note), self._best_model(outcome, on_note)
        return self._plain_tracker().sync(
            outcome.record, self.ledger.load_trials(name), outcome, artifacts, model
        )

    def doctor(self) -> Doctor:
        """Describe runtimes and CPU, and measure the noise floor."""
        from autoq.examining import examine_machine

        return examine_machine()

    # --- caches ----------------------------------------------------------------------------------

    def cache_use(self) -> list[CacheUse]:
        """Say what each cache of the home holds."""
        uses = []
        for folder in sorted(self.home.cache.glob("*")):
            files = _cached_files(folder)
            uses.append(CacheUse(folder.name, len(files), sum(found.st_size for _, found in files)))
        return uses

    def prune_cache(self, keep_bytes: int) -> int:
        """Delete cached files, least recently used first, until at most `keep_bytes` are left.

        Returns:
            Bytes freed.
        """
        files = _cached_files(self.home.cache)
        sized = sorted((found.st_atime, found.st_size, path) for path, found in files)
        excess = sum(size for _, size, _ in sized) - keep_bytes
        freed = 0
        for _, size, path in sized:
            if freed >= excess:
                break
            path.unlink(missing_ok=True)
            freed += size
        return freed


def _cached_files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """List files with what they are, but for those that somebody is writing; others may delete here too."""
    found = []
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            stat = path.stat()
            if S_ISREG(stat.st_mode) and (is_abandoned(stat) or not is_unfinished(path)):
                found.append((path, stat))
    return found


@contextmanager
def _meanwhile(work: Callable[[], object]) -> Iterator[Callable[[], None]]:
    """Do something in a thread beside the block; it has ended when the block has, however that ends.

    Yields what waits for it.
    """
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield thread.join
    finally:
        thread.join()


def _import_sampling() -> None:
    """Import what the first trial is proposed and stored with: a third of a second."""
    with suppress(Exception):  # whoever needs it imports it again, and is told
        for module in ("scipy.special", "autoq.search.guided"):
            importlib.import_module(module)


def _do_nothing() -> None:
    pass


def _keep_layer_facts(
    ready: Preparation, sources: Mapping[Rewrites, Source], home: Home, listener: SearchListener
) -> None:
    """Keep what the report tells of layers; it is no reason for a search to fail at its end."""
    from autoq.inspecting import keep_layer_facts

    try:
        keep_layer_facts(ready, sources, home)
    except AutoqError as error:
        listener.on_note(f"the report will say less of the layers: {error}")


def _is_same_measure(record: SearchRecord, ready: Preparation) -> bool:
    """Whether a stored baseline is what this search would measure."""
    spec = ready.spec.to_json()
    return (
        record.model_digest == ready.content_digest
        and canonical_json(record.environment) == canonical_json(ready.environment)
        and all(record.spec[part] == spec[part] for part in ("metric", "target", "timing"))
        and record.spec["model"].get("output") == spec["model"].get("output")
        and record.spec["search"]["seed"] == spec["search"]["seed"]
    )


def _check_same_measure(known: SearchRecord, ready: Preparation) -> None:
    """Refuse to mix measurements that cannot be compared.

    Raises:
        StoreError: Model, data, metric, machine or runtime are no longer what they were.
    """
    if known.model_digest != ready.content_digest:
        raise StoreError(
            f"search {known.name!r} was started on another model, other data or another metric",
            hint="give the new search another name, or delete the old one",
        )
    for key in ("runtime", "runtime_version", "threads", "batch_size", "cpu"):
        before, now = known.environment.get(key), ready.environment[key]
        if before != now:
            raise StoreError(
                f"search {known.name!r} was measured with {key} {before}, here it is {now}",
                hint="latencies of two machines or runtimes do not mix: give the new search another name",
            )


def _check_deterministic(baseline: Baseline, spec: SearchSpec, listener: SearchListener) -> None:
    """Say that a model's outputs change from run to run, and refuse if no drop so small can be told.

    Raises:
        ModelError: Two runs of the float model differ by more than the drop that is allowed.
    """
    if baseline.is_deterministic:
        return
    moved, bound = baseline.accuracy_jitter, spec.constraints.max_accuracy_drop
    about = "two runs of the float model on the same data give different outputs"
    if bound is not None and moved > bound:
        raise ModelError(
            f"{about}; the metric moves by {moved:.4g}, more than the allowed drop of {bound:g}",
            hint="take the random operators out of the model, or allow a larger drop",
        )
    listener.on_note(
        f"warning: {about}; the metric moved by {moved:.4g}, intervals are widened, candidates are not raced"
    )


def _plan(ready: Preparation, guide: Guide | None) -> Plan:
    search = ready.spec.search
    return Plan(
        goals=ready.spec.goals,
        space=ready.space,
        anchors=tuple(ready.anchors),
        strategy=search.strategy,
        n_trials=search.trials,
        seed=search.seed,
        time_budget_s=search.time_budget_s,
        patience=search.patience,
        guide=guide,
        finalist_rounding=None if search.finalist_rounding is None else Rounding(search.finalist_rounding),
    )


def _seconds_text(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{part} {value:.2f} s" for part, value in seconds.items())
