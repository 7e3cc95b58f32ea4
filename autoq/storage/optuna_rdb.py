"""Optuna's own storage, opened on the store's database. Importing this imports Optuna."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
import sqlalchemy as sa
from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import TrialModel, TrialParamModel
from optuna.trial import FrozenTrial
from sqlalchemy.engine import URL, Engine
from sqlalchemy.orm import Session

from autoq.core.errors import StoreError, StoreUnavailable
from autoq.storage.engine import (
    connect_arguments,
    flush_seldom,
    is_sqlite,
    opening,
    schema_lock,
    shown,
    working,
)


class BatchedRDBStorage(RDBStorage):
    """`RDBStorage` that writes the parameters of a finished trial in one statement.

    Optuna asks two questions per parameter before it inserts it, to guard trials that are still
    being sampled: 150 ms for 150 parameters. Ours were sampled and checked in memory. The method
    below is Optuna's own business: should it go, trials are written as before, only slower.
    """

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: Session
    ) -> TrialModel:
        if template_trial is None:
            return super()._get_prepared_new_trial(study_id, None, session)
        bare = copy.copy(template_trial)
        bare.params, bare.distributions = {}, {}
        trial = super()._get_prepared_new_trial(study_id, bare, session)
        if template_trial.params:
            session.execute(sa.insert(TrialParamModel), _param_rows(trial.trial_id, template_trial))
        return trial

    def count_trials(self, study_id: int) -> int:
        """Count the trials of a study without reading their parameters."""
        with self.engine.connect() as connection:
            statement = sa.select(sa.func.count()).where(TrialModel.study_id == study_id)
            return int(connection.scalar(statement) or 0)


def open_storage(engine: Engine) -> BatchedRDBStorage:
    """Open Optuna's tables in the database of `engine`, creating them where they are missing.

    Raises:
        StoreError: The database cannot be reached, or these tables are another program's.
    """
    url = engine.url
    try:
        with opening(url), schema_lock(engine):
            storage = BatchedRDBStorage(_template_of(url), engine_kwargs=_engine_arguments(url))
    # RuntimeError is what Optuna raises for tables of another version.
    except (RuntimeError, optuna.exceptions.StorageInternalError) as error:
        raise StoreError(
            f"Optuna cannot keep its study in the store {shown(url)}: {error}",
            hint="give autoq a database of its own",
        ) from error
    if is_sqlite(url):
        flush_seldom(storage.engine)
    return storage


@contextmanager
def optuna_errors(url: URL) -> Iterator[None]:
    """Turn the loss of the database, as Optuna tells it, into `StoreUnavailable`."""
    try:
        with working(url):
            yield
    except optuna.exceptions.StorageInternalError as error:
        raise StoreUnavailable(f"the store {shown(url)} did not take Optuna's trial") from error


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna's INFO lines about our own bookkeeping out of the user's terminal."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _param_rows(trial_id: object, trial: FrozenTrial) -> list[dict[str, object]]:
    return [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": trial.distributions[name].to_internal_repr(value),
            "distribution_json": distribution_to_json(trial.distributions[name]),
        }
        for name, value in trial.params.items()
    ]


def _template_of(url: URL) -> str:
    # Optuna formats the URL as a template, in which braces are special.
    return url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")


def _engine_arguments(url: URL) -> dict[str, object]:
    return {"connect_args": connect_arguments(url), "pool_pre_ping": not is_sqlite(url)}
