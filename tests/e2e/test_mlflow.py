"""MLflow beside a search: models that load from it, and a server that comes and goes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from mlflow import MlflowClient
from tiny_case import NAME, ledger_of, run_autoq, started, write_case

from autoq.core.digests import digest_bytes
from autoq.tracking.connection import talking_to
from autoq.tracking.server import choose_port, experiment_pages, server_command, server_settings
from autoq.tracking.sqlite_store import create_sqlite_store, sqlite_uri

EXPERIMENT = "autoq/tiny"
SPACE = {"version": 1, "layers": {"*": {"format": ["fp32", "int8"], "calibration": "minmax"}}}


@contextmanager
def serving(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A tracking server over a database and artifacts of its own, until it is killed."""
    store = folder / "server.db"
    with talking_to(sqlite_uri(store)):
        create_sqlite_store(store)
    server = subprocess.Popen(
        server_command("127.0.0.1", port),
        env=server_settings(sqlite_uri(store), folder / "served"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not answers(port):
            assert server.poll() is None
            time.sleep(0.1)
        experiment_pages(f"http://127.0.0.1:{port}")  # the first question opens the store, which takes time
        yield server
    finally:
        kill(server)


def answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
    return True


def kill(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def shown(tracking_uri: str) -> list[Any]:
    """Everything a reader sees of the runs and models, without what differs between two equal searches."""
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    own = ("mlflow.parentRunId", "mlflow.user")
    runs = [
        (run.info.run_name, run.info.status, run.data.params, run.data.metrics,
         {name: text for name, text in run.data.tags.items() if name not in own})
        for run in client.search_runs([experiment.experiment_id])
    ]  # fmt: skip
    models = client.search_logged_models([experiment.experiment_id])
    return [*sorted(runs, key=lambda run: run[0]), *sorted((one.name, str(one.status)) for one in models)]


def test_a_server_killed_in_mid_search_has_all_of_it_after_a_sync(tmp_path: Path) -> None:
    spec, home = write_case(tmp_path, {"search.trials": 12, "space": SPACE}), tmp_path / "home"
    port = choose_port("127.0.0.1", 0)
    uri = f"http://127.0.0.1:{port}"
    with (
        serving(tmp_path, port) as server,
        started("search", spec, "--home", home, MLFLOW_TRACKING_URI=uri) as search,
    ):
        search.wait_for("2 of 12: trial 1")
        live = MlflowClient(uri).search_experiments(filter_string=f"name = '{EXPERIMENT}'")
        assert len(live) == 1  # it shows up while it runs
        kill(server)
        code, said = search.ended()
    assert code == 0, said
    assert "the search goes on without it" in said
    assert f"`autoq sync {NAME}` adds what is missing" in said

    with serving(tmp_path, port):
        first = run_autoq("sync", NAME, "--home", home, MLFLOW_TRACKING_URI=uri)
        assert "were missing in MLflow and are there now" in first.stdout, first.stderr
        again = run_autoq("sync", NAME, "--home", home, MLFLOW_TRACKING_URI=uri)
        assert again.stdout == f"MLflow has all trials of {NAME}\n", again.stderr
        synced = shown(uri)
    assert run_autoq("sync", NAME, "--home", home).returncode == 0  # into an empty store: nothing disturbs it
    assert synced == shown(sqlite_uri(home / "mlflow.db"))
    assert len(synced) >= 1 + 12 + 1  # search, trials (some are proposed again), model


@pytest.fixture
def in_home(finished: Any, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(finished.home / "mlflow.db"))
    return MlflowClient()


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")  # MLflow's, of its own types
def test_the_best_model_is_logged_with_a_signature_and_loads(finished: Any, in_home: MlflowClient) -> None:
    import mlflow.onnx

    experiment = in_home.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    best = finished.report["best"]
    models = in_home.search_logged_models([experiment.experiment_id])
    # Other searches of the same model, by tests that ran before, log theirs in the same experiment.
    found = {"autoq.search": NAME, "autoq.trial": str(best)}
    (logged,) = [one for one in models if found.items() <= one.tags.items()]
    signature = mlflow.models.get_model_info(logged.model_uri).signature
    assert signature is not None
    (image,), (logits,) = signature.inputs.inputs, signature.outputs.inputs
    assert (image.name, image.type, image.shape) == ("image", np.dtype("float32"), (-1, 3, 16, 16))
    assert (logits.name, logits.type, logits.shape) == ("logits", np.dtype("float32"), (-1, 4))
    model = mlflow.onnx.load_model(logged.model_uri)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    images = np.ones((2, 3, 16, 16), np.float32)
    (expected,) = session.run(None, {"image": images})
    served = mlflow.pyfunc.load_model(logged.model_uri).predict({"image": images})
    np.testing.assert_array_equal(served["logits"], expected)


def test_a_registered_model_is_the_measured_one_and_a_second_time_the_same_version(
    finished: Any, in_home: MlflowClient, tmp_path: Path
) -> None:
    import mlflow.onnx

    flags = ("export", NAME, "--select", "1", "--register", "tiny-int8", "--home", finished.home)
    for _ in range(2):
        ran = run_autoq(*flags)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout == "registered in MLflow: models:/tiny-int8/1\n"
    assert [one.version for one in in_home.search_model_versions("name = 'tiny-int8'")] == [1]
    mlflow.onnx.load_model("models:/tiny-int8/1", dst_path=str(tmp_path))
    with ledger_of(finished.home) as ledger:
        measured = ledger.load_trials(NAME)[1].measurement
    assert measured is not None
    (written,) = tmp_path.rglob("model.onnx")
    assert digest_bytes(written.read_bytes()) == measured.model_digest


@pytest.mark.parametrize("flags", [(), ("--register", "a/b")])
def test_an_export_to_nowhere_or_under_an_impossible_name_is_refused(
    finished: Any, flags: tuple[str]
) -> None:
    ran = run_autoq("export", NAME, *flags, "--home", finished.home)
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert "--register" in ran.stderr or "'a/b'" in ran.stderr


def test_without_the_model_a_sync_brings_the_trials_and_says_what_is_missing(
    finished: Any, tmp_path: Path
) -> None:
    home = shutil.copytree(finished.home, tmp_path / "home")
    shutil.rmtree(home / "cache")
    (home / "mlflow.db").unlink()
    hidden = (finished.spec.parent / "tiny.onnx").rename(finished.spec.parent / "hidden.onnx")
    try:
        ran = run_autoq("sync", NAME, "--home", home)
    finally:
        hidden.rename(finished.spec.parent / "tiny.onnx")
    assert ran.returncode == 0, ran.stderr
    assert "8 trials of tiny were missing in MLflow and are there now" in ran.stdout
    assert "MLflow does not get the best model" in ran.stderr
