"""The MLflow pages: `autoq ui`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from autoq.core.errors import InfrastructureError, UserError
from autoq.tracking.connection import talking_to, without_credentials
from autoq.tracking.run_content import EXPERIMENT_PREFIX
from autoq.tracking.sqlite_store import create_sqlite_store, follow_home, sqlite_path

DEFAULT_PORT = 5000
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 10.0
# One person browsing needs neither MLflow's four workers nor its consumers of background jobs.
_SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "PYTHONWARNINGS": "ignore",  # deprecations inside MLflow are nothing to a reader of its pages
}

# MLflow 3 opens its GenAI pages, whatever an experiment's kind, until the browser remembers a choice or
# an address makes it. Links within its pages drop the choice: so there is an address an experiment.
_WORKFLOW = "?workflowType=machine_learning"
RUNS_PAGE = f"/#/experiments{_WORKFLOW}"
_MOST_LISTED = 20


def run_ui(
    backend_uri: str,
    artifact_root: Path,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the MLflow pages of a store until Ctrl-C or until the server ends by itself.

    Without a port, the usual one is taken if it is free, else any; 0 takes any.

    Raises:
        UserError: The port is taken, the host is not of this machine, or `backend_uri` is a server.
        InfrastructureError: The server did not start, or ended with an error.
    """
    if backend_uri.startswith(("http://", "https://")):
        address = without_credentials(backend_uri)
        raise UserError(f"MLflow is served already, at {address}", hint="open it in a browser")
    chosen = choose_port(host, port)
    if port is None and chosen != DEFAULT_PORT:
        say(f"port {DEFAULT_PORT} is taken; using {chosen}")
    if (path := sqlite_path(backend_uri)) is not None:
        with talking_to(backend_uri):
            create_sqlite_store(path)
            follow_home(path, artifact_root)
    address = f"http://{_reachable(host)}:{chosen}"
    settings = server_settings(backend_uri, artifact_root)
    with _serving(server_command(host, chosen), settings) as server:
        try:
            _wait_until_ready(server, address)
            pages = experiment_pages(address)
            say(f"MLflow is at {address}{RUNS_PAGE} (Ctrl-C stops it)")
            for name, page in pages:
                say(f"  {name}: {page}")
            if server.wait() != 0:
                raise InfrastructureError(f"the MLflow server ended with code {server.returncode}")
        except KeyboardInterrupt:
            say("stopping the MLflow server")


def experiment_pages(address: str) -> list[tuple[str, str]]:
    """Ask a server for the experiments of searches; return name and address of each, the latest first."""
    query = {"max_results": _MOST_LISTED, "filter": f"name LIKE '{EXPERIMENT_PREFIX}%'"}
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/experiments/search",
        json.dumps(query | {"order_by": ["last_update_time DESC"]}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        # The first question opens the store, which takes a busy machine longer than the server's start did.
        with urllib.request.urlopen(request, timeout=_START_TIMEOUT_S) as answer:
            found = json.load(answer).get("experiments", [])
    except OSError:
        return []  # a convenience: the pages themselves say what is wrong
    pages = f"{address}/#/experiments"
    return [(one["name"], f"{pages}/{one['experiment_id']}/runs{_WORKFLOW}") for one in found]


def server_command(host: str, port: int) -> list[str]:
    """Build the command that serves with one worker."""
    options = {"--host": host, "--port": str(port), "--workers": "1", "--uvicorn-opts": "--log-level warning"}
    return [sys.executable, "-m", "mlflow", "server", *(part for pair in options.items() for part in pair)]


def server_settings(backend_uri: str, artifact_root: Path) -> dict[str, str]:
    """Environment of the server; the store is named here because a command line shows its password to all."""
    stores = {
        "MLFLOW_BACKEND_STORE_URI": backend_uri,
        "MLFLOW_ARTIFACTS_DESTINATION": artifact_root.resolve().as_uri(),
    }
    return {**_SETTINGS, **os.environ, **stores}


def choose_port(host: str, port: int | None) -> int:
    """Return the port asked for; None: the usual one if it is free, else any; 0: any that is free.

    Raises:
        UserError: The port is taken, or `host` is no address of this machine.
    """
    if port is not None:
        return _bind(host, port)
    try:
        return _bind(host, DEFAULT_PORT)
    except UserError:
        return _bind(host, 0)


def _bind(host: str, port: int) -> int:
    """Return the port that a bind to `port` gives; it is free again afterwards."""
    hint = "choose another with --port or --host"
    if not 0 <= port <= 65535:
        raise UserError(f"cannot serve on {host}:{port}: no such port", hint=hint)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        raise UserError(f"cannot serve on {host}:{port}: {error.strerror or error}", hint=hint) from error


def _reachable(host: str) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{reachable}]" if ":" in reachable else reachable


@contextmanager
def _serving(command: Sequence[str], settings: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server for the length of the block, also when a signal or a closed terminal ends the block."""
    server = subprocess.Popen(
        command,
        env=settings,
        stdout=subprocess.DEVNULL,
        # Out of the terminal's reach: at Ctrl-C its worker would die with a traceback.
        start_new_session=True,
    )
    ends = (signal.SIGTERM, signal.SIGHUP)
    before = {
        end: signal.signal(end, lambda number, _frame: sys.exit(128 + number))
        for end in ends
        if signal.getsignal(end) is not signal.SIG_IGN  # by nohup, which is to be heeded
    }
    try:
        yield server
    finally:
        for end, handler in before.items():
            signal.signal(end, handler)
        _stop(server)


def _wait_until_ready(server: subprocess.Popen[bytes], address: str) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise InfrastructureError(f"the MLflow server ended at its start with code {server.returncode}")
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2.0):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.2)
    raise InfrastructureError(
        f"the MLflow server did not answer at {address} within {_START_TIMEOUT_S:.0f} s"
    )


def _stop(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        server.terminate()  # MLflow passes it on to its worker
    try:
        server.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
