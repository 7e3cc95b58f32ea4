"""Commands that write or serve: export, apply, unbundle, delete, sync, ui."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from autoq.cli import wording
from autoq.cli.errors import say
from autoq.cli.listeners import Stage
from autoq.cli.opening import open_app
from autoq.cli.searching import followed
from autoq.cli.streams import results_alone_on_stdout
from autoq.core.errors import UserError


def take_point(
    name: str,
    select: str,
    home: Path,
    *,
    out: Path | None,
    register: str | None,
    bundle_format: str | None = None,
) -> None:
    """Export a point, register it in MLflow, or both.

    Raises:
        UserError: Neither is asked for, or a bundle without a folder to write it to.
    """
    if out is None and register is None:
        raise UserError("nothing to do", hint="give --out a folder to write, or --register a name")
    if out is None and bundle_format is not None:
        raise UserError("--bundle needs a folder to write to", hint="give --out a folder")
    if register is not None:
        from autoq.tracking.logged_models import check_registered_name

        check_registered_name(register)
    if out is not None:
        _export_point(name, select, out, home, bundle_format)
    if register is not None:
        _register_point(name, select, register, home)


def _export_point(name: str, select: str, out: Path, home: Path, bundle_format: str | None) -> None:
    with results_alone_on_stdout(), open_app(home) as app, followed(Stage()) as listener:
        point = app.export(name, select, out, listener, bundle_format=bundle_format)
    print(f"trial {point.trial.number} of {name} is in {out}: {wording.figures(point.measurement)}")
    for path in sorted(out.iterdir()):
        print(f"  {path.name}  {wording.size(path.stat().st_size)}")


def _register_point(name: str, select: str, model_name: str, home: Path) -> None:
    with results_alone_on_stdout(), open_app(home) as app, followed(Stage()) as listener:
        version = app.register(name, select, model_name, listener)
    print(f"registered in MLflow: models:/{model_name}/{version}")


def apply_recipe(recipe: Path, model: Path, out: Path) -> None:
    """Rebuild a compressed model and say what was written."""
    with results_alone_on_stdout():
        from autoq.exporting import apply_recipe_file

        n_bytes = apply_recipe_file(recipe, model, out)
    print(f"{out}: {wording.size(n_bytes)}")


def restore_bundle(bundle: Path, out: Path) -> None:
    """Restore the model of a bundle and say what was written."""
    with results_alone_on_stdout():
        from autoq.export.bundle import unbundle

        n_bytes = unbundle(bundle, out)
    print(f"{out}: {wording.size(n_bytes)}")


def delete_search(name: str, home: Path, *, yes: bool) -> None:
    """Delete a search, after asking.

    Raises:
        UserError: There is nobody to ask.
    """
    with open_app(home) as app:
        app.record(name)
        if not yes:
            if not sys.stdin.isatty():
                raise UserError(
                    f"search {name!r} is not deleted: there is no terminal to ask", hint="use --yes"
                )
            if not typer.confirm(f"Delete search {name!r} with {len(app.trials(name))} trials?", err=True):
                say("nothing is deleted")
                return
        app.delete(name)
    say(f"search {name!r} is deleted")


def sync_search(name: str, home: Path) -> None:
    """Replay a search into MLflow and say how much was missing there."""
    with results_alone_on_stdout(), open_app(home) as app:
        n_missed = app.sync(name, say)
    if n_missed:
        print(f"{n_missed} trials of {name} were missing in MLflow and are there now")
    else:
        print(f"MLflow has all trials of {name}")


def serve_ui(host: str, port: int | None, home: Path) -> None:
    """Serve MLflow over the home's store, or over the one that AUTOQ_MLFLOW_STORAGE names."""
    from autoq.home import Home
    from autoq.tracking.mlflow_tracking import locate_tracking
    from autoq.tracking.server import run_ui

    opened = Home.open(home)
    given = os.environ.get("AUTOQ_MLFLOW_STORAGE") or opened.tracking_uri
    uri, artifact_root = locate_tracking(opened.root, given)
    # No root of its own is a server's: `run_ui` says where that is.
    run_ui(uri, artifact_root or opened.root, host=host, port=port, say=say)
