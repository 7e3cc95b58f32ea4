from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from autoq.core.errors import UserError
from autoq.search.records import SearchRecord
from autoq.tracking.mlflow_tracking import MlflowTracker
from autoq.tracking.server import DEFAULT_PORT, RUNS_PAGE, choose_port, run_ui, server_settings
from autoq.tracking.sqlite_store import sqlite_uri


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield int(other.getsockname()[1])


@pytest.mark.parametrize(
    ("end", "said"), [(signal.SIGINT, "stopping the MLflow server\nreturned\n"), (signal.SIGHUP, "")]
)
def test_the_pages_are_served_until_ctrl_c_or_a_closed_terminal_and_nothing_stays_behind(
    store: Path, record: SearchRecord, tmp_path: Path, end: signal.Signals, said: str
) -> None:
    MlflowTracker(sqlite_uri(store), tmp_path / "artifacts").start_search(record)
    port = choose_port("127.0.0.1", 0)
    # A process in the background, or under nohup, inherits that these signals are ignored.
    code = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from pathlib import Path
from autoq.tracking.server import run_ui
artifacts = Path({str(tmp_path / "artifacts")!r})
run_ui({sqlite_uri(store)!r}, artifacts, port={port}, say=lambda text: print(text, flush=True))
print("returned")
"""
    command = [sys.executable, "-c", code]
    ui = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert ui.stdout is not None
    try:
        assert ui.stdout.readline() == f"MLflow is at http://127.0.0.1:{port}{RUNS_PAGE} (Ctrl-C stops it)\n"
        page = f"http://127.0.0.1:{port}/#/experiments/1/runs?workflowType=machine_learning"
        assert ui.stdout.readline() == f"  autoq/digits-cnn: {page}\n"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
            assert b"<title>MLflow</title>" in answer.read()
        os.kill(ui.pid, end)
        rest, _ = ui.communicate(timeout=20)
    finally:
        ui.terminate()  # a kill would leave its server behind
        ui.wait()
    assert rest == said
    assert choose_port("127.0.0.1", port) == port  # free again


def test_postgresql_serves_the_pages_with_one_worker_and_no_consumers(
    postgres_url: str, record: SearchRecord, tmp_path: Path
) -> None:
    MlflowTracker(postgres_url, tmp_path / "artifacts").start_search(record)
    command = [sys.executable, "-m", "autoq", "ui", "--home", str(tmp_path / "home"), "--port", "0"]
    settings = {**os.environ, "AUTOQ_MLFLOW_STORAGE": postgres_url}
    ui = subprocess.Popen(command, env=settings, stderr=subprocess.PIPE, text=True)
    assert ui.stderr is not None
    try:
        said = next(line for line in ui.stderr if "autoq/digits-cnn: " in line)
        (server,) = psutil.Process(ui.pid).children()
        workers = [
            child for child in server.children() if "resource_tracker" not in " ".join(child.cmdline())
        ]
    finally:
        ui.terminate()  # a kill would leave its server behind
        ui.communicate(timeout=30)
    assert "/runs?workflowType=machine_learning" in said
    assert len(workers) <= 1


def test_a_port_that_is_taken_is_refused_by_its_number(taken_port: int, store: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"127\.0\.0\.1:{taken_port}.*--port"):
        run_ui(sqlite_uri(store), tmp_path, port=taken_port)


def test_without_a_port_a_free_one_is_chosen_when_the_usual_one_is_taken(
    taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoq.tracking.server.DEFAULT_PORT", taken_port)
    assert choose_port("127.0.0.1", None) not in (0, taken_port, DEFAULT_PORT)


def test_port_0_is_any_that_is_free_never_the_usual_one_that_another_may_be_about_to_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual = choose_port("127.0.0.1", 0)
    monkeypatch.setattr("autoq.tracking.server.DEFAULT_PORT", usual)
    assert choose_port("127.0.0.1", None) == usual
    assert choose_port("127.0.0.1", 0) not in (0, usual)


def test_a_port_that_cannot_be_and_a_host_that_is_not_here_are_refused() -> None:
    with pytest.raises(UserError, match=r"127\.0\.0\.1:70000: no such port"):
        choose_port("127.0.0.1", 70000)
    with pytest.raises(UserError, match=r"192\.0\.2\.1"):
        choose_port("192.0.2.1", 0)


def test_a_store_that_is_a_server_is_only_pointed_at(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"served already, at https://mlflow\.example "):
        run_ui("https://ada:secret@mlflow.example", tmp_path)


def test_the_server_runs_without_job_consumers_unless_the_user_wants_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert server_settings("sqlite:///x", tmp_path)["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "true")
    assert server_settings("sqlite:///x", tmp_path)["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "true"
