"""MLflow as a view of searches: one parent run a search, one nested child run a trial.

Everything here is idempotent: a parent is found again by search name and time of creation, a child
by its trial number, so replaying a search adds only what is missing.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from autoq.core.errors import InfrastructureError
from autoq.search.outcome import Outcome
from autoq.search.records import SearchRecord, SearchState, TrialRecord, TrialState
from autoq.tracking import run_content
from autoq.tracking.connection import talking_to
from autoq.tracking.logged_models import log_model, register_model
from autoq.tracking.onnx_model import DeployedModel
from autoq.tracking.sqlite_store import (
    create_sqlite_store,
    follow_home,
    relax_durability,
    sqlite_path,
    sqlite_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# An experiment of unknown kind opens on MLflow's GenAI pages; the address has a say too, see server.py.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}

_PARENT_TAG = "mlflow.parentRunId"
_PARAMS_PER_BATCH = 100  # MLflow's limit
_RUNS_PER_PAGE = 1000
_SEARCHED, _FINAL = 0, 1  # steps of a metric: what the search measured, what the final round said
_STATUS = {
    SearchState.RUNNING: "RUNNING",
    SearchState.FINISHED: "FINISHED",
    SearchState.INTERRUPTED: "KILLED",
    SearchState.FAILED: "FAILED",
}


def locate_tracking(home: Path, given_uri: str | None) -> tuple[str, Path | None]:
    """Return tracking URI and artifact root; without a given URI a database in the home.

    A tracking server keeps artifacts its own way: None. A database has no way of its own.
    """
    if given_uri and given_uri.startswith(("http://", "https://")):
        return given_uri, None
    return given_uri or sqlite_uri(home / "mlflow.db"), home / "mlflow-artifacts"


@dataclass(frozen=True, slots=True)
class _Child:
    """A run of a trial that the server holds."""

    run_id: str
    digest: str
    whole: bool  # False: whoever wrote it was stopped in its midst


@dataclass(frozen=True, slots=True)
class _Parent:
    """The run of a search, with the runs of its trials by number."""

    key: tuple[str, float]
    experiment_id: str
    run_id: str
    children: dict[int, _Child]


class MlflowTracker:
    """Writes searches to an MLflow server or database.

    MLflow is imported at the first call, never its fluent API: no global run, URI or experiment
    changes. Every method but the constructor may raise.

    Raises:
        InfrastructureError: The server or its database failed; trying again may help.
    """

    def __init__(self, tracking_uri: str, artifact_root: Path | None = None) -> None:
        self.tracking_uri = tracking_uri
        self._artifact_root = artifact_root  # None: where the server puts them
        self._client: MlflowClient | None = None
        self._parent: _Parent | None = None

    def prepare(self) -> None:
        """Import MLflow, create the database, and wake the server up: seconds on a fresh home.

        Optional, and safe to run in a thread beside other work: later calls wait for it.
        """
        with self._talking():
            self._connect().search_experiments(max_results=1)

    def start_search(self, record: SearchRecord) -> None:
        """Open the parent run, a new one or that of the search being resumed, and mark it as running."""
        with self._talking():
            client, run_id = self._connect(), self._parent_of(record).run_id
            client.update_run(run_id, status="RUNNING")
            self._describe_search(run_id, record, None)

    def log_trial(self, record: SearchRecord, trial: TrialRecord, *, feasible: bool) -> None:
        """Write a trial as one finished run; a trial that is there already is left alone."""
        with self._talking():
            self._add_child(record, trial, feasible)

    def finish_search(
        self,
        record: SearchRecord,
        outcome: Outcome,
        artifacts: Mapping[str, Path],
        model: DeployedModel | None = None,
    ) -> None:
        """Write what only the end knows: front, final timings, best point, files, how it ended.

        Args:
            record: The search.
            outcome: What it found.
            artifacts: Local files by their path inside the run's artifacts.
            model: The best point as it would be deployed; a model that is there already is left alone.
        """
        with self._talking():
            client, parent = self._connect(), self._parent_of(record)
            self._update_children(parent, outcome)
            self._describe_search(parent.run_id, record, outcome)
        with self._talking(uploading=True):
            for name, path in artifacts.items():
                _upload(client, parent.run_id, name, path)
            if model is not None:
                log_model(client, parent.experiment_id, parent.run_id, model)
            if record.state is not SearchState.RUNNING:
                client.set_terminated(parent.run_id, _STATUS[record.state])

    def sync(
        self,
        record: SearchRecord,
        trials: Sequence[TrialRecord],
        outcome: Outcome,
        artifacts: Mapping[str, Path],
        model: DeployedModel | None = None,
    ) -> int:
        """Replay a search: add what is missing, correct what differs. Return the number of trials added."""
        feasible = {point.trial.digest for point in outcome.points if point.feasible}
        with self._talking():
            self._parent = None  # others may have written since
            added = sum(self._add_child(record, trial, trial.digest in feasible) for trial in trials)
        self.finish_search(record, outcome, artifacts, model)
        return added

    def register(self, record: SearchRecord, model: DeployedModel, name: str) -> int:
        """Register a point's model under a name; return its version, the old one if it is there already."""
        with self._talking():
            client, parent = self._connect(), self._parent_of(record)
        with self._talking(uploading=True):
            logged = log_model(client, parent.experiment_id, parent.run_id, model)
            return register_model(client, logged, name)

    @contextmanager
    def _talking(self, *, uploading: bool = False) -> Iterator[None]:
        try:
            with talking_to(self.tracking_uri, uploading=uploading):
                yield
        except InfrastructureError:
            # The server may come back without what it had.
            self._client = self._parent = None
            raise

    def _connect(self) -> MlflowClient:
        if self._client is None:
            from mlflow import MlflowClient

            if (path := sqlite_path(self.tracking_uri)) is not None:
                create_sqlite_store(path)
                if self._artifact_root is not None:
                    follow_home(path, self._artifact_root)
                relax_durability(self.tracking_uri, str(self._artifact_root or path.parent))
            self._client = MlflowClient(tracking_uri=self.tracking_uri)
        return self._client

    def _experiment_of(self, record: SearchRecord) -> str:
        client, name = self._connect(), run_content.experiment_name(record)
        found = client.get_experiment_by_name(name)
        if found is None:
            location = None if self._artifact_root is None else self._artifact_root.resolve().as_uri()
            return str(client.create_experiment(name, location, EXPERIMENT_TAGS))
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _parent_of(self, record: SearchRecord) -> _Parent:
        key = (record.name, record.created_at)
        if self._parent is None or self._parent.key != key:
            client, experiment_id = self._connect(), self._experiment_of(record)
            tags = run_content.search_tags(record)
            identity = {name: tags[name] for name in (run_content.SEARCH_TAG, run_content.CREATED_TAG)}
            found = next(self._runs(experiment_id, identity), None)
            run = found or client.create_run(
                experiment_id, start_time=_ms(record.created_at), tags=tags, run_name=record.name
            )
            children = self._children(experiment_id, run.info.run_id)
            self._parent = _Parent(key, experiment_id, run.info.run_id, children)
        return self._parent

    def _children(self, experiment_id: str, parent_id: str) -> dict[int, _Child]:
        found = {}
        for run in self._runs(experiment_id, {_PARENT_TAG: parent_id}):
            whole = run.info.status in ("FINISHED", "FAILED")
            child = _Child(run.info.run_id, run.data.tags.get(run_content.DIGEST_TAG, ""), whole)
            found[int(run.data.tags[run_content.TRIAL_TAG])] = child
        return found

    def _runs(self, experiment_id: str, tags: Mapping[str, str]) -> Iterator[Run]:
        """Yield the runs, not deleted, that carry the tags."""
        condition = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        token: str | None = ""
        while token is not None:
            page = self._connect().search_runs(
                [experiment_id], condition, max_results=_RUNS_PER_PAGE, page_token=token or None
            )
            yield from page
            token = page.token or None

    def _add_child(self, record: SearchRecord, trial: TrialRecord, feasible: bool) -> bool:
        """Write a trial unless it is there; a run that is broken off or of another candidate is replaced."""
        client, parent = self._connect(), self._parent_of(record)
        if (known := parent.children.get(trial.number)) is not None:
            if known.whole and known.digest == trial.digest:
                return False
            client.delete_run(known.run_id)
        tags = run_content.trial_tags(record, trial, feasible=feasible) | {_PARENT_TAG: parent.run_id}
        run_id = client.create_run(
            parent.experiment_id,
            start_time=_ms(trial.started_at),
            tags=tags,
            run_name=run_content.trial_name(record, trial),
        ).info.run_id
        self._log_figures(run_id, trial)
        status = "FAILED" if trial.state is TrialState.FAILED else "FINISHED"
        end = trial.started_at + sum(trial.seconds.values())
        client.set_terminated(run_id, status, _ms(end))
        parent.children[trial.number] = _Child(run_id, trial.digest, whole=True)
        return True

    def _log_figures(self, run_id: str, trial: TrialRecord) -> None:
        from mlflow.entities import Metric, Param

        client, at = self._connect(), _ms(trial.started_at)
        params = [Param(name, value) for name, value in run_content.trial_params(trial.candidate).items()]
        figures = run_content.trial_metrics(trial)
        metrics = [Metric(name, value, at, _SEARCHED) for name, value in figures.items()]
        client.log_batch(run_id, metrics=metrics, params=params[:_PARAMS_PER_BATCH])
        for start in range(_PARAMS_PER_BATCH, len(params), _PARAMS_PER_BATCH):
            client.log_batch(run_id, params=params[start : start + _PARAMS_PER_BATCH])

    def _update_children(self, parent: _Parent, outcome: Outcome) -> None:
        on_front = {point.trial.number for point in outcome.front}
        points = {point.trial.number: point for point in outcome.points}
        for run in self._runs(parent.experiment_id, {_PARENT_TAG: parent.run_id}):
            number = int(run.data.tags[run_content.TRIAL_TAG])
            if (point := points.get(number)) is not None:
                tags = run_content.point_tags(point, on_front=number in on_front)
                metrics = run_content.trial_seconds(point.trial) | run_content.point_metrics(point)
                self._write_changes(run, metrics, tags)

    def _describe_search(self, run_id: str, record: SearchRecord, outcome: Outcome | None) -> None:
        client = self._connect()
        metrics = run_content.search_metrics(record, outcome)
        self._write_changes(client.get_run(run_id), metrics, run_content.search_tags(record))
        client.log_text(run_id, run_content.spec_text(record), "spec.yaml")

    def _write_changes(self, run: Run, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Write what differs from what the run holds, in one call or none."""
        from mlflow.entities import Metric, RunTag

        now, held = _ms(time.time()), run.data
        new_metrics = [Metric(n, v, now, _FINAL) for n, v in metrics.items() if held.metrics.get(n) != v]
        new_tags = [RunTag(name, value) for name, value in tags.items() if held.tags.get(name) != value]
        if new_metrics or new_tags:
            self._connect().log_batch(run.info.run_id, metrics=new_metrics, tags=new_tags)


def _upload(client: MlflowClient, run_id: str, name: str, path: Path) -> None:
    """Log a file under `name`, which may hold folders; MLflow itself keeps a file's own name."""
    target = PurePosixPath(name)
    folder = None if target.parent == PurePosixPath(".") else str(target.parent)
    if path.name == target.name:
        client.log_artifact(run_id, str(path), folder)
        return
    with tempfile.TemporaryDirectory() as renamed:
        copy = shutil.copyfile(path, Path(renamed) / target.name)
        client.log_artifact(run_id, str(copy), folder)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
