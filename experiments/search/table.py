"""Print results.json as Markdown and draw its plots: `python experiments/search/table.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
COLOURS = {"guided": "#D55E00", "tpe": "#0072B2", "nsga2": "#009E73", "gp": "#CC79A7", "random": "#666666"}


def bars_of(content: Any) -> Iterator[str]:
    """Every bar in the results, as a row."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            if key == "bars":
                yield from (bar_row(bar) for bar in value)
            else:
                yield from bars_of(value)


def bar_row(bar: Mapping[str, Any]) -> str:
    """One bar."""
    return f"| {bar['what']} | {bar['figure']:.3g} | {bar['bar']} | {'met' if bar['met'] else '**missed**'} |"


def quality_rows(results: Mapping[str, Any]) -> Iterator[str]:
    """Every run of the comparison."""
    for model, content in results.get("quality", {}).items():
        for one in content["rows"]:
            yield (
                f"| {model} | {one['strategy']} | {one['seed']} | {one['trials']} | {one['closed']:.3f} "
                f"| {one['closed_early']:.3f} | {one['suggest_s']['median']:.2f} |"
            )


def latency_rows(results: Mapping[str, Any]) -> Iterator[str]:
    """How right forecasts of latency were, for candidates of either origin."""
    for model, content in results["latency_model"].items():
        for part, one in content["by_part"].items():
            error, ranks = one["median_error"], one["rank_correlation"]
            yield f"| {model} | {part} | {one['n']} | {error:.1%} | {ranks:.3f} |"


def handmade_rows(results: Mapping[str, Any]) -> Iterator[str]:
    """Every row made by hand, with the best point of the guided searches beside it."""
    for one in results.get("handmade", {}).get("rows", []):
        if one["gain"] is None:
            rival = "none | | "
        else:
            rival = f"{one['best_agreement']:.4f} | {one['best_speedup']:.2f}x | {one['gain']:.2f}x"
        yield f"| {one['row']} | {one['agreement']:.4f} | {one['speedup']:.2f}x | {rival} |"


def draw_quality(results: Mapping[str, Any]) -> None:
    """A dot a run: the share of the gap that it closed."""
    quality = results["quality"]
    figure, axes = plt.subplots(1, len(quality), figsize=(3.4 * len(quality), 3.2), squeeze=False)
    for axis, (model, content) in zip(axes[0], quality.items(), strict=True):
        names = list(dict.fromkeys(row["strategy"] for row in content["rows"]))
        for row in content["rows"]:
            name = row["strategy"]
            axis.plot(names.index(name), row["closed"], "o", color=COLOURS[name])
        trials = {row["strategy"]: row["trials"] for row in content["rows"]}
        axis.set_xticks(range(len(names)), [f"{name}\n{trials[name]}" for name in names])
        axis.set(title=model, ylim=(0, 1.05), xlim=(-0.5, len(names) - 0.5))
    axes[0][0].set_ylabel("share of the gap closed")
    figure.supxlabel("strategy and trials, anchors included", fontsize=9)
    figure.tight_layout()
    figure.savefig(HERE / "quality.png", dpi=150)


def draw_latency(results: Mapping[str, Any]) -> None:
    """Foretold against measured latency of candidates that the model has not seen."""
    models = results["latency_model"]
    figure, axes = plt.subplots(1, len(models), figsize=(3.4 * len(models), 3.2), squeeze=False)
    for axis, (model, content) in zip(axes[0], models.items(), strict=True):
        for is_chosen, name in ((False, "random"), (True, "guided")):
            mine = [at for at, chosen in enumerate(content["is_chosen"]) if chosen is is_chosen]
            foretold, measured = ([content[key][at] for at in mine] for key in ("foretold", "measured"))
            axis.plot(foretold, measured, ".", color=COLOURS[name], alpha=0.6, label=name)
        low = min(*content["foretold"], *content["measured"])
        high = max(*content["foretold"], *content["measured"])
        axis.plot([low, high], [low, high], color="#666666", linewidth=0.8)
        axis.set(title=f"{model}, {len(content['measured'])} candidates")
        axis.set(xlabel="foretold share of float's latency")
    axes[0][0].set_ylabel("measured")
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(HERE / "latency.png", dpi=150)


def draw_scaling(results: Mapping[str, Any]) -> None:
    """Seconds of preparation and of a suggestion over the number of layers."""
    rows = results["scaling"]["rows"]
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.2))
    layers = [row["layers"] for row in rows]
    figures = {
        "preparation, s": [row["preparation_s"] for row in rows],
        "one suggestion, s": [row["suggest_s"]["median"] for row in rows],
    }
    for axis, (title, seconds) in zip(axes, figures.items(), strict=True):
        axis.plot(layers, seconds, "o-", color=COLOURS["guided"])
        axis.plot(layers, [seconds[0] * n / layers[0] for n in layers], ":", color="#666666")
        axis.set(title=title, xlabel="layers", ylim=(0, None))
    axes[0].text(layers[-1], figures["preparation, s"][0] * layers[-1] / layers[0], "linear", ha="right")
    figure.tight_layout()
    figure.savefig(HERE / "scaling.png", dpi=150)


def main() -> None:
    results = json.loads((HERE / "results.json").read_text())
    print("| what | figure | bar | |\n| --- | --- | --- | --- |")
    print("\n".join(bars_of(results)))
    print("\n| model | strategy | seed | trials | gap closed | within 12 | suggestion, s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    print("\n".join(quality_rows(results)))
    print("\n| model | candidates | foretold | median error | rank correlation |")
    print("| --- | --- | --- | --- | --- |")
    print("\n".join(latency_rows(results)))
    print("\n| MiniLM by hand | agreement | speed-up | guided's best | speed-up | over the row |")
    print("| --- | --- | --- | --- | --- | --- |")
    print("\n".join(handmade_rows(results)))
    draw_quality(results)
    draw_latency(results)
    if "scaling" in results:
        draw_scaling(results)


if __name__ == "__main__":
    main()
