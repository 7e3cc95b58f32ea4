"""The Optuna study of a search, in the same database as its ledger.

The search asks in memory and this writes what is finished, so `optuna.load_study` and
optuna-dashboard see the search while it runs. Optuna is imported when a study is first touched.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine

from autoq.core.errors import StoreError
from autoq.storage.engine import create_engine, parse_url, shown, working

if TYPE_CHECKING:
    import optuna

OWNER_KEY = "autoq"  # user attribute of the studies that are ours


class StudyLedger:
    """The stored Optuna study of one search; append-only."""

    def __init__(
        self, url: str, name: str, *, directions: Sequence[str], metric_names: Sequence[str]
    ) -> None:
        """Open the study of that name, creating it where it is missing.

        Args:
            url: Database of the ledger.
            name: Name of the search.
            directions: `minimize` or `maximize` for each objective.
            metric_names: What each objective is called in Optuna's plots and tables.

        Raises:
            StoreError: The database cannot be reached, or the study of that name is not autoq's or
                has other objectives.
        """
        from autoq.storage.optuna_rdb import open_storage

        self._url = parse_url(url)
        engine = create_engine(self._url)
        try:
            self._storage = open_storage(engine)
        finally:
            engine.dispose()
        try:
            self._study = self._open(name, directions, list(metric_names))
        except StoreError:
            self.close()
            raise
        self._study_id = self._storage.get_study_id_from_name(name)

    def sync(self, trials: Iterable[optuna.trial.FrozenTrial]) -> int:
        """Append the trials that the study lacks, each in one transaction; return how many.

        `trials` are all of the search's, from number 0 on and without a gap; those from the first
        unfinished one on are left for a later call. Calling again adds nothing.

        Raises:
            StoreUnavailable: The database went away; call again.
            ValueError: A trial's number is not its place in the search.
        """
        from autoq.storage.optuna_rdb import optuna_errors

        finished = list(takewhile(lambda trial: trial.state.is_finished(), trials))
        for place, trial in enumerate(finished):
            if trial.number != place:
                raise ValueError(f"trial {trial.number} stands at place {place} of the search")
        with optuna_errors(self._url):
            missing = finished[self._storage.count_trials(self._study_id) :]
            for trial in missing:
                self._study.add_trial(trial)
        return len(missing)

    def close(self) -> None:
        """Give all connections back."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def _open(self, name: str, directions: Sequence[str], metric_names: list[str]) -> optuna.Study:
        import optuna

        from autoq.storage.optuna_rdb import optuna_errors, quiet_optuna

        wanted = [optuna.study.StudyDirection[direction.upper()] for direction in directions]
        with optuna_errors(self._url), quiet_optuna():
            study = optuna.create_study(
                storage=self._storage, study_name=name, directions=wanted, load_if_exists=True
            )
            if not _is_ours(study) or study.directions != wanted:
                raise foreign_study(self._url, name)
            study.set_user_attr(OWNER_KEY, True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names(metric_names)
        return study


def study_exists(url: str, name: str) -> bool:
    """Say whether a database has an Optuna study of that name, whosever it is, without importing Optuna.

    Raises:
        StoreError: The database cannot be reached.
    """
    engine = create_engine(parse_url(url))
    try:
        return _has_study(engine, name)
    finally:
        engine.dispose()


def is_foreign_study(engine: Engine, name: str) -> bool:
    """Say whether a database has a study of that name which is not autoq's, without importing Optuna."""
    if not _has_study(engine, name):
        return False
    whose = sa.text(
        "SELECT"
        " (SELECT count(*) FROM study_user_attributes AS a WHERE a.study_id = s.study_id AND a.key = :key),"
        " (SELECT count(*) FROM trials AS t WHERE t.study_id = s.study_id)"
        " FROM studies AS s WHERE s.study_name = :name"
    )
    with working(engine.url), engine.connect() as connection:
        n_marks, n_trials = connection.execute(whose, {"name": name, "key": OWNER_KEY}).one()
    return not n_marks and bool(n_trials)


def foreign_study(url: URL, name: str) -> StoreError:
    """Say that somebody else's study has the name of a search."""
    return StoreError(
        f"the store {shown(url)} already has an Optuna study named {name!r} that is not this search's",
        hint="choose another name for the search",
    )


def delete_study(engine: Engine, name: str) -> None:
    """Remove autoq's Optuna study of that name from a database, if it has one."""
    if not _has_study(engine, name):
        return
    import optuna

    from autoq.storage.optuna_rdb import open_storage, optuna_errors, quiet_optuna

    storage = open_storage(engine)
    try:
        with optuna_errors(engine.url), quiet_optuna():
            if _is_ours(optuna.load_study(study_name=name, storage=storage)):
                optuna.delete_study(study_name=name, storage=storage)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _has_study(engine: Engine, name: str) -> bool:
    """Look without importing Optuna or creating its tables."""
    with working(engine.url), engine.connect() as connection:
        if not sa.inspect(connection).has_table("studies"):
            return False
        query = sa.text("SELECT count(*) FROM studies WHERE study_name = :name")
        return bool(connection.scalar(query, {"name": name}))


def _is_ours(study: optuna.Study) -> bool:
    # A study without trials may be one whose creation was cut short.
    return OWNER_KEY in study.user_attrs or not study.get_trials(deepcopy=False)
