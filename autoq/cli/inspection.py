"""The inspect command: a model or the model of a spec, its layers, and what each choice does to them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoq.cli import render, sensitivity, views, wording
from autoq.cli.listeners import Stage
from autoq.cli.opening import log_to
from autoq.cli.searching import followed
from autoq.cli.streams import print_json, print_table, results_alone_on_stdout, results_console
from autoq.core.errors import SpecError, StoreError

if TYPE_CHECKING:
    from rich.console import Console

    from autoq.inspecting import Inspection, Sensitivity

_SPECS = (".yaml", ".yml")


@dataclass(frozen=True)
class InspectRequest:
    """An inspection as it was asked for."""

    path: Path  # of a model or a spec
    home: Path
    with_sensitivity: bool = False
    plot: Path | None = None
    with_groups: bool = False
    as_json: bool = False

    @property
    def is_spec(self) -> bool:
        """Whether the path names a search spec."""
        return self.path.suffix.lower() in _SPECS


@dataclass(frozen=True)
class _Found:
    inspection: Inspection
    sensitivity: Sensitivity | None = None
    plot: Path | None = None


def inspect_path(request: InspectRequest) -> None:
    """Print the layers of a model, or of a spec's model with what its space offers.

    Raises:
        UserError: Whatever the user can mend: the file, the flags, for a spec also its data.
    """
    _check(request)
    if request.with_groups:
        _inspect_groups(request)
        return
    with results_alone_on_stdout():
        found = _of_spec(request) if request.is_spec else _of_model(request)
    if request.as_json:
        print_json(_content(found))
    else:
        _print(results_console(as_json=False), found)


def _check(request: InspectRequest) -> None:
    """Refuse what would only fail after the work is done."""
    if request.with_sensitivity and not request.is_spec:
        raise SpecError("--sensitivity needs calibration data: give the search spec, not the model")
    if request.with_sensitivity and request.with_groups:
        raise SpecError("--sensitivity and --groups are two views: give one at a time")
    if request.plot is None:
        return
    if not request.with_sensitivity:
        raise SpecError("--plot draws local errors: give --sensitivity as well")
    from autoq.reporting.sensitivity_plot import check_plot_path

    check_plot_path(request.plot)


def _inspect_groups(request: InspectRequest) -> None:
    from autoq.inspecting import inspect_groups
    from autoq.spec.loading import load_spec
    from autoq.spec.schema import OnnxModelSpec

    with results_alone_on_stdout():
        model = load_spec(request.path).model if request.is_spec else OnnxModelSpec(path=str(request.path))
        grouping = inspect_groups(model)
    if request.as_json:
        print_json(asdict(grouping))
        return
    console = results_console(as_json=False)
    n_units = sum(group.size for group in grouping.groups)
    _line(console, f"{len(grouping.groups)} channel groups of {n_units:,} units")
    if grouping.groups:
        print_table(console, render.groups_table(grouping))
    for line in render.left_alone(grouping):
        _line(console, f"left alone: {line}")


def _of_model(request: InspectRequest) -> _Found:
    from autoq.inspecting import inspect_model

    return _Found(inspect_model(request.path))


def _of_spec(request: InspectRequest) -> _Found:
    from autoq.home import Home
    from autoq.inspecting import estimate_sensitivity, inspect_search
    from autoq.preparation import prepare
    from autoq.spec.loading import load_spec

    spec = load_spec(request.path)
    home = Home.open(request.home)
    with log_to(home.log_file), followed(Stage()) as listener:
        ready = prepare(spec, home, listener)
        inspection = inspect_search(ready)
        if not request.with_sensitivity:
            return _Found(inspection)
        estimated = estimate_sensitivity(ready, home, listener)
        plot = request.plot or home.artifacts(spec.name) / "sensitivity.png"
        _draw(inspection, estimated, plot)
        listener.on_note(f"statistics and variants are kept in {request.home}: a search reuses them")
    return _Found(inspection, estimated, plot)


def _draw(inspection: Inspection, estimated: Sensitivity, plot: Path) -> None:
    from autoq.reporting.sensitivity_plot import plot_sensitivity

    try:
        plot.parent.mkdir(parents=True, exist_ok=True)
        plot_sensitivity(sensitivity.build_map(inspection, estimated), plot)
    except OSError as error:
        raise StoreError(f"{plot}: cannot write the plot: {error.strerror}") from error


def _content(found: _Found) -> dict[str, Any]:
    content = views.inspection_json(found.inspection)
    if found.sensitivity is not None:
        content["sensitivity"] = {**views.sensitivity_json(found.sensitivity), "plot": str(found.plot)}
    return content


def _print(console: Console, found: _Found) -> None:
    seen = found.inspection.summary
    _line(
        console,
        f"{len(seen.layers)} layers, {sum(layer.n_params for layer in seen.layers):,} parameters, "
        f"{len(seen.ops)} weightless ops, {wording.size(seen.size_bytes)}",
    )
    if found.sensitivity is None:
        print_table(console, render.layers_table(found.inspection))
    else:
        for line in sensitivity.heading_lines(found.sensitivity):
            _line(console, line)
        table = sensitivity.sensitivity_table(found.inspection, found.sensitivity)
        sensitivity.print_uncut(console, table)
        _line(console, f"plot: {found.plot}")
    for refusal in render.refusals(found.inspection):
        _line(console, f"refused: {refusal}")


def _line(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True)
