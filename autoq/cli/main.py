"""The `autoq` command: every command with its flags, and nothing of what they do.

Torch, MLflow, Optuna and the rest take seconds to import, so the app is imported by the commands
that use it.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from autoq.cli.errors import report_errors
from autoq.cli.options import DEFAULT_HOME, HomeOption, JsonOption, NameArgument

THE_SPECS = "the spec's"  # default of a flag that overrides the spec

app = typer.Typer(
    name="autoq",
    help="Find how to compress a model for one piece of hardware, by measuring.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line: the console script `autoq`."""
    app(prog_name="autoq")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"autoq {version('autoq')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Find how to compress a model for one piece of hardware, by measuring."""


@app.command()
def search(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="What to search: a YAML file.")],
    latency_budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME|SHARE",
            help="Longest time of one run: 0.8ms, or a share of the float model's, 50%.",
            show_default=THE_SPECS,
        ),
    ] = None,
    max_drop: Annotated[
        str | None,
        typer.Option(
            metavar="FRACTION",
            help="Largest drop of the metric, absolute, in its unit: 1% or 0.01.",
            show_default=THE_SPECS,
        ),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(metavar="BYTES", help="Largest deployed file: 3MB or 512KiB.", show_default=THE_SPECS),
    ] = None,
    max_bundle: Annotated[
        str | None,
        typer.Option(metavar="BYTES", help="Largest storage bundle: 1MB or 512KiB.", show_default=THE_SPECS),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(metavar="N", help="Candidates to measure, anchors included.", show_default=THE_SPECS),
    ] = None,
    time_budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Time for all trials, over all sessions: 90s, 10m or 1h.",
            show_default=THE_SPECS,
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(metavar="K", help="Stop after K trials without a better front.", show_default=THE_SPECS),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="guided, tpe, nsga2, gp or random.", show_default=THE_SPECS),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Seed of the strategy, a whole number.", show_default=THE_SPECS),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a search that was interrupted. Default: no.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything, say what it would cost, and stop. Default: no."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Search for the best compression of a model and print the Pareto front.

    Exit codes: 0 a feasible front; 3 nothing feasible; 2 your error; 1 ours, or every trial failed;
    4 infrastructure lost, go on with --resume; 130 interrupted, go on with --resume.
    """
    from autoq.cli.searching import SearchFlags, SearchRequest, estimate_search, run_search

    flags = SearchFlags(
        latency_budget, max_drop, max_size, max_bundle, trials, time_budget, patience, strategy, seed
    )
    request = SearchRequest(spec, flags, home, resume, as_json)
    with report_errors():
        code = estimate_search(request) if dry_run else run_search(request)
    raise typer.Exit(code)


@app.command()
def front(name: NameArgument, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Print the Pareto front of a search. Exit code 3: nothing is feasible."""
    from autoq.cli.looking import show_front

    with report_errors():
        code = show_front(name, home, as_json=as_json)
    raise typer.Exit(code)


@app.command()
def show(
    name: NameArgument,
    trial: Annotated[int | None, typer.Argument(metavar="TRIAL", help="Number of a trial.")] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Print a search with all its trials, or one trial with its choices for each layer."""
    from autoq.cli.looking import show_search, show_trial

    with report_errors():
        if trial is None:
            show_search(name, home, as_json=as_json)
        else:
            show_trial(name, trial, home, as_json=as_json)


@app.command()
def report(
    name: NameArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder to write.", show_default="the search's artifacts in the home"
        ),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Write the report of a search: a page that opens offline, and each picture as a page and a PNG."""
    from autoq.cli.reporting import write_report

    with report_errors():
        write_report(name, out, home, as_json=as_json)


@app.command()
def compare(
    names: Annotated[list[str], typer.Argument(metavar="NAME NAME...", help="Names of 2 to 4 searches.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for a page and a PNG.", show_default="print only"),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Compare the fronts of searches in drop and latency, and say who beats whom."""
    from autoq.cli.reporting import compare_searches

    with report_errors():
        compare_searches(names, out, home, as_json=as_json)


@app.command("list")
def list_searches(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """List all searches, oldest first."""
    from autoq.cli.looking import show_searches

    with report_errors():
        show_searches(home, as_json=as_json)


@app.command()
def delete(
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask. Default: ask.")] = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Delete a search with its trials and artifacts; its runs in MLflow stay."""
    from autoq.cli.taking import delete_search

    with report_errors():
        delete_search(name, home, yes=yes)


@app.command()
def export(
    name: NameArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder to write, a new or an empty one.",
            show_default="none; needed without --register",
        ),
    ] = None,
    select: Annotated[
        str,
        typer.Option(metavar="POINT", help="best, knee, fastest, smallest, or the number of a trial."),
    ] = "best",
    bundle: Annotated[
        bool,
        typer.Option("--bundle", help="Write the model as a storage bundle too, to keep it. Default: no."),
    ] = False,
    bundle_format: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            help="native: the smallest. hdf5 (compressed; needs h5py), safetensors (not compressed): for "
            "tools that read those. `autoq unbundle` gives the model back from each. Implies --bundle.",
            show_default="native",
        ),
    ] = None,
    register: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Also make it a version of this model in MLflow's registry.",
            show_default="do not",
        ),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Write a point of a search as a folder that deploys without autoq, and check what was written."""
    from autoq.cli.taking import take_point

    wanted = bundle_format or ("native" if bundle else None)
    with report_errors():
        take_point(name, select, home, out=out, register=register, bundle_format=wanted)


@app.command()
def apply(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A recipe.yaml with its tensors beside it.")
    ],
    model: Annotated[Path, typer.Option("--model", metavar="FILE", help="The float model, ONNX.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write the compressed model.")],
) -> None:
    """Rebuild a compressed model, byte for byte, from its recipe and the float model."""
    from autoq.cli.taking import apply_recipe

    with report_errors():
        apply_recipe(recipe, model, out)


@app.command()
def unbundle(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="What autoq export --bundle wrote, in any format.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write the model, ONNX.")],
) -> None:
    """Restore a model, byte for byte, from its storage bundle."""
    from autoq.cli.taking import restore_bundle

    with report_errors():
        restore_bundle(bundle, out)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(metavar="MODEL|SPEC", help="An ONNX file, or a search spec, YAML.")],
    sensitivity: Annotated[
        bool,
        typer.Option(
            "--sensitivity",
            help="Calibrate, and tell the error of each choice of the spec's space, in dB. Default: no.",
        ),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where to draw the sensitivity: .png or .svg.",
            show_default="sensitivity.png among the artifacts in the home",
        ),
    ] = None,
    groups: Annotated[
        bool,
        typer.Option(
            "--groups",
            help="Tell which channels can only be removed together, and what is left alone and why, "
            "instead. Default: no.",
        ),
    ] = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Print a model's layers, their share of its latency, and the formats they can have here.

    With a spec: those that its space offers; with --sensitivity also what each does to its layer.
    """
    from autoq.cli.inspection import InspectRequest, inspect_path

    with report_errors():
        inspect_path(InspectRequest(path, home, sensitivity, plot, groups, as_json))


@app.command()
def ui(
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to serve on.")] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Port to serve on.", show_default="5000, or a free one if it is taken"
        ),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Serve the MLflow pages of all searches until Ctrl-C."""
    from autoq.cli.taking import serve_ui

    with report_errors():
        serve_ui(host, port, home)


@app.command()
def sync(name: NameArgument, home: HomeOption = DEFAULT_HOME) -> None:
    """Replay a search into MLflow: whatever is missing there."""
    from autoq.cli.taking import sync_search

    with report_errors():
        sync_search(name, home)


@app.command()
def doctor(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Print runtimes, CPU and instruction sets, and measure the noise floor of latencies."""
    from autoq.cli.looking import show_doctor

    with report_errors():
        show_doctor(home, as_json=as_json)


@app.command()
def cache(
    prune: Annotated[
        str | None,
        typer.Option(
            metavar="BYTES",
            help="Delete what was used longest ago until this much is left: 5GB or 500MB.",
            show_default="delete nothing",
        ),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Print what the caches hold. Everything in them can be deleted and is built again."""
    from autoq.cli.looking import show_cache

    with report_errors():
        show_cache(prune, home, as_json=as_json)
