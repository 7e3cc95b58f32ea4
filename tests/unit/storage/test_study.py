from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from autoq.core.errors import StoreError, StoreUnavailable
from autoq.storage.engine import create_engine, parse_url
from autoq.storage.ledger import SqlLedger
from autoq.storage.study import StudyLedger, delete_study
from autoq.testing.ledger_contract import example_search

DIRECTIONS = ["maximize", "minimize"]
METRICS = ["top1", "latency"]


@pytest.fixture
def url(store_url: str) -> str:
    """URL under the name by which Optuna's own users open it."""
    return parse_url(store_url).render_as_string(hide_password=False)


@pytest.fixture
def study_ledger(url: str) -> Iterator[StudyLedger]:
    ledger = StudyLedger(url, "glyphs", directions=DIRECTIONS, metric_names=METRICS)
    yield ledger
    ledger.close()


def frozen(number: int, n_layers: int = 2) -> FrozenTrial:
    """A finished trial as a search in memory leaves it."""
    formats = [f"int8/channel/method{i}" for i in range(12)]
    params: dict[str, Any] = {}
    distributions: dict[str, Any] = {}
    for layer in range(n_layers):
        name = f"layer{layer}.conv1"
        params |= {f"{name}.format": formats[number % 12], f"{name}.bits": 4, f"{name}.sparsity": 0.1 + 0.2}
        distributions |= {
            f"{name}.format": CategoricalDistribution(formats),
            f"{name}.bits": IntDistribution(2, 8),
            f"{name}.sparsity": FloatDistribution(0.0, 0.9),
        }
    trial = create_trial(
        values=[1 / 3, 0.1 + 0.2],
        params=params,
        distributions=distributions,
        user_attrs={"digest": "d" * 32, "choices": {"conv1": "x" * 3000}},
        system_attrs={"nsga2:generation": 3, "nsga2:parents": [1, 2]},
        constraints={"max_latency_ms": -0.25, "max_accuracy_drop": 0.125},
    )
    trial.number = number
    return trial


def facts(trial: FrozenTrial) -> dict[str, Any]:
    """Everything of a trial that has to come back."""
    names = (
        "number",
        "state",
        "values",
        "params",
        "distributions",
        "user_attrs",
        "system_attrs",
        "constraints",
    )
    return {name: getattr(trial, name) for name in names} | {"params_order": list(trial.params)}


def load(url: str) -> list[FrozenTrial]:
    storage = optuna.storages.RDBStorage(url)
    study = optuna.load_study(study_name="glyphs", storage=storage)
    assert study.metric_names == METRICS
    assert [direction.name.lower() for direction in study.directions] == DIRECTIONS
    trials = study.get_trials()
    storage.remove_session()
    storage.engine.dispose()
    return trials


def test_load_study_sees_every_trial_as_the_search_left_it(study_ledger: StudyLedger, url: str) -> None:
    trials = [frozen(0), frozen(1)]
    assert study_ledger.sync(trials) == 2
    found = load(url)
    assert [facts(trial) for trial in found] == [facts(trial) for trial in trials]
    for stored, trial in zip(found, trials, strict=True):
        assert stored.datetime_complete is not None
        assert trial.datetime_complete is not None
        assert abs(stored.datetime_complete - trial.datetime_complete) < timedelta(seconds=1)


def test_syncing_again_adds_only_what_is_new(study_ledger: StudyLedger, url: str) -> None:
    assert study_ledger.sync([frozen(0)]) == 1
    assert study_ledger.sync([frozen(0)]) == 0
    again = StudyLedger(url, "glyphs", directions=DIRECTIONS, metric_names=METRICS)
    assert again.sync([frozen(0), frozen(1), frozen(2)]) == 2
    again.close()
    assert [trial.number for trial in load(url)] == [0, 1, 2]


def test_failed_trials_keep_their_place(study_ledger: StudyLedger, url: str) -> None:
    failed = create_trial(state=TrialState.FAIL, user_attrs={"reason": "died"})
    failed.number = 0
    study_ledger.sync([failed, frozen(1)])
    assert [trial.state for trial in load(url)] == [TrialState.FAIL, TrialState.COMPLETE]


def test_the_trial_in_flight_waits_for_a_later_sync(study_ledger: StudyLedger, url: str) -> None:
    running = create_trial(state=TrialState.RUNNING)
    running.number = 1
    assert study_ledger.sync([frozen(0), running]) == 1
    assert study_ledger.sync([frozen(0), frozen(1)]) == 1
    assert [trial.number for trial in load(url)] == [0, 1]


def test_a_gap_in_the_numbers_is_refused_before_anything_is_written(
    study_ledger: StudyLedger, url: str
) -> None:
    with pytest.raises(ValueError, match="trial 2 stands at place 1"):
        study_ledger.sync([frozen(0), frozen(2)])
    assert load(url) == []


def test_a_sampler_goes_on_from_the_stored_study(study_ledger: StudyLedger, url: str) -> None:
    study_ledger.sync([frozen(number) for number in range(3)])
    memory = optuna.create_study(directions=DIRECTIONS, sampler=optuna.samplers.TPESampler(seed=0))
    memory.add_trials(load(url))
    asked = memory.ask(frozen(0).distributions)
    assert asked.number == 3
    assert asked.params.keys() == frozen(0).params.keys()


def test_a_trial_of_150_parameters_takes_no_query_per_parameter(sqlite_url: str) -> None:
    ledger = StudyLedger(sqlite_url, "glyphs", directions=DIRECTIONS, metric_names=METRICS)
    statements: list[str] = []

    def note(_c: object, _cursor: object, statement: str, *_rest: object) -> None:
        statements.append(statement)

    sa.event.listen(ledger._storage.engine, "before_cursor_execute", note)
    ledger.sync([frozen(0, n_layers=50)])
    ledger.close()
    assert len(statements) < 40
    assert facts(load(sqlite_url)[0]) == facts(frozen(0, n_layers=50))


def test_a_study_of_somebody_else_is_neither_used_nor_deleted(url: str) -> None:
    storage = optuna.storages.RDBStorage(url)
    theirs = optuna.create_study(study_name="glyphs", storage=storage, directions=DIRECTIONS)
    theirs.add_trial(frozen(0))
    with pytest.raises(StoreError, match="already has an Optuna study named 'glyphs'"):
        StudyLedger(url, "glyphs", directions=DIRECTIONS, metric_names=METRICS)
    ledger = SqlLedger(url)
    with pytest.raises(StoreError, match="already has an Optuna study named 'glyphs'"):
        ledger.check_free("glyphs")
    ledger.check_free("letters")
    ledger.create_search(example_search())
    ledger.delete_search("glyphs")
    ledger.close()
    assert optuna.load_study(study_name="glyphs", storage=storage).trials[0].params == frozen(0).params
    storage.remove_session()
    storage.engine.dispose()


def test_a_study_with_other_objectives_is_refused(study_ledger: StudyLedger, url: str) -> None:
    with pytest.raises(StoreError, match="already has an Optuna study named 'glyphs'"):
        StudyLedger(url, "glyphs", directions=["minimize"], metric_names=["latency"])


def test_the_name_of_a_study_of_autoqs_own_is_free(study_ledger: StudyLedger, url: str) -> None:
    study_ledger.sync([frozen(0)])
    ledger = SqlLedger(url)
    ledger.check_free("glyphs")
    ledger.close()


def test_deleting_a_study_leaves_the_others(study_ledger: StudyLedger, url: str) -> None:
    study_ledger.sync([frozen(0)])
    other = StudyLedger(url, "other", directions=DIRECTIONS, metric_names=METRICS)
    other.sync([frozen(0)])
    other.close()
    engine = create_engine(parse_url(url))
    delete_study(engine, "other")
    delete_study(engine, "other")
    with engine.connect() as connection:
        for table, rows in (("studies", 1), ("trials", 1), ("trial_params", 6)):
            assert connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar() == rows, table
    engine.dispose()
    assert len(load(url)) == 1


def test_deleting_where_optuna_was_never_used_creates_no_table(url: str) -> None:
    engine = create_engine(parse_url(url))
    delete_study(engine, "glyphs")
    assert sa.inspect(engine).get_table_names() == []
    engine.dispose()


def test_a_database_of_another_program_is_refused(sqlite_url: str) -> None:
    engine = create_engine(parse_url(sqlite_url))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('of_mlflow')")
    with pytest.raises(StoreError, match="give autoq a database of its own"):
        StudyLedger(sqlite_url, "glyphs", directions=DIRECTIONS, metric_names=METRICS)
    engine.dispose()


def test_optuna_says_nothing_of_our_bookkeeping(url: str, caplog: pytest.LogCaptureFixture) -> None:
    optuna.logging.enable_propagation()
    StudyLedger(url, "glyphs", directions=DIRECTIONS, metric_names=METRICS).close()
    StudyLedger(url, "glyphs", directions=DIRECTIONS, metric_names=METRICS).close()
    optuna.logging.disable_propagation()
    assert caplog.records == []
    assert optuna.logging.get_verbosity() == optuna.logging.INFO


def test_a_path_with_braces_and_percents_is_taken_as_it_is(tmp_path: Any) -> None:
    folder = tmp_path / "a {b} 100%"
    folder.mkdir()
    url = f"sqlite:///{folder}/autoq.db"
    SqlLedger(url).close()
    StudyLedger(url, "glyphs", directions=DIRECTIONS, metric_names=METRICS).close()
    assert {path.name for path in folder.iterdir()} >= {"autoq.db"}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_database_that_goes_away_is_unavailable(postgres_url: str, postgres_server: sa.URL) -> None:
    ledger = StudyLedger(postgres_url, "glyphs", directions=DIRECTIONS, metric_names=METRICS)
    admin = sa.create_engine(postgres_server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {sa.make_url(postgres_url).database} WITH (FORCE)")
    with pytest.raises(StoreUnavailable, match="does not exist"):
        ledger.sync([frozen(0)])
    ledger.close()
