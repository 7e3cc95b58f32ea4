"""The report of a search: what was found, on what, how sure it is, and the pictures."""

from __future__ import annotations

from collections.abc import Sequence

from autoq.core.choices import FLOAT_BITS
from autoq.core.measurements import Accuracy
from autoq.reporting import figures
from autoq.reporting.about import about_section, describe
from autoq.reporting.charts import Missing
from autoq.reporting.figures import Scale
from autoq.reporting.front_table import front_table, latency_interval
from autoq.reporting.html_page import build_page, escape, figure_html
from autoq.reporting.pictures import Content, draw_pictures
from autoq.search.hindsight import optimism_of
from autoq.search.outcome import Outcome, Point
from autoq.search.records import SearchState

_HOLDS = {
    "yes": "holds on the test split",
    "no": "does NOT hold on the test split",
    "undecided": "undecided on the test split: too few examples to tell",
}


def write_page(content: Content) -> str:
    """Return the report as one HTML file."""
    outcome = content.outcome
    charts, missing = draw_pictures(content)
    first, rest = charts[:1], charts[1:]
    body = [
        "<main>",
        _head(outcome),
        *_best_card(outcome),
        *map(figure_html, first),
        *front_table(outcome),
        *map(figure_html, rest),
        about_section(outcome, "What was measured, and where"),
        *_left_out(missing),
        "</main>",
        _footer(outcome),
    ]
    return build_page(f"{outcome.record.name}: autoq report", body, charts)


# --- head and card -----------------------------------------------------------------------------------


def _head(outcome: Outcome) -> str:
    record = outcome.record
    state = "" if record.state is SearchState.FINISHED else f" The search is {record.state}."
    return (
        f'<header><h1 id="title">{escape(record.name)}</h1>'
        f'<p class="lead" id="lead">{escape(_lead(outcome))}{escape(state)}</p>'
        f'<p class="quiet" id="about">{escape(_about(outcome))}</p></header>'
    )


def _lead(outcome: Outcome) -> str:
    point, scale = outcome.best or outcome.nearest, Scale.of(outcome.record.spec)
    counts = f"{outcome.n_trials} trials, {len(outcome.front)} on the front."
    if point is None:
        return f"Nothing is measured yet. {counts}"
    measured, baseline = point.measurement, outcome.record.baseline
    smaller = "" if baseline is None else f", {baseline.size_bytes / measured.size.size_bytes:.1f}x smaller"
    what = "The best point" if outcome.best else "Nothing keeps every bound; the nearest point"
    return (
        f"{what} is {measured.latency.speedup:.2f}x faster than the float model{smaller}, and "
        f"{scale.change(measured.accuracy.drop)} in {scale.metric}. {counts}"
    )


def _about(outcome: Outcome) -> str:
    facts = describe(outcome)
    model = facts["machine"].partition(", instruction")[0]
    return f"{facts['model']} on {facts['target']}, {model}; {facts['date']}."


def _best_card(outcome: Outcome) -> list[str]:
    point = outcome.best or outcome.nearest
    if point is None:
        return []
    scale, measured = Scale.of(outcome.record.spec), point.measurement
    accuracy, latency, size = measured.accuracy, measured.latency, measured.size
    name = "Best point" if outcome.best else "Nearest to feasible"
    cells = [
        (scale.metric, scale.value(accuracy.value), _basis(accuracy)),
        ("drop", scale.drop(accuracy.drop), _between(scale.drop(0.0, accuracy.drop_ci), accuracy.drop_ci)),
        ("latency", f"{figures.significant(latency.latency_ms)} ms", latency_interval(point)),
        ("speed-up", f"{latency.speedup:.2f}x", "[{:.2f}, {:.2f}]".format(*latency.speedup_ci)),
        ("deployed file", figures.megabytes(size.size_bytes), ""),
        ("storage bundle", figures.megabytes(size.bundle_bytes), ""),
    ]
    facts = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for label, value, note in cells
    )
    select = "best" if outcome.best else str(point.trial.number)
    export = f"autoq export {outcome.record.name} --select {select} --out DIR"
    return [
        f'<section id="best"><h2>{name}: trial {point.trial.number}</h2>',
        f'<p class="quiet">Found by {escape(point.trial.origin)}. '
        f"{escape(figures.summary_of_choices(point.trial.candidate))}.</p>",
        f'<dl class="facts">{facts}</dl>',
        _test_sentence(point, scale),
        f"<p>Take it away: <code>{escape(export)}</code></p>",
        _choices(point),
        "</section>",
    ]


def _basis(accuracy: Accuracy) -> str:
    about = "an estimate, scoring stopped after " if accuracy.is_estimate else ""
    return f"{about}{accuracy.n_examples} examples of the search split"


def _between(text: str, interval: object) -> str:
    return (
        "no interval: the metric is one number for the set" if interval is None else text[text.index("[") :]
    )


def _test_sentence(point: Point, scale: Scale) -> str:
    optimism = optimism_of(point)
    if point.test is None or optimism is None:
        return '<p id="holds">No figure is checked on unseen data: the test split has not been used.</p>'
    test, holds = point.test.accuracy, point.test.holds
    text = (
        f"It {_HOLDS[holds]}" if holds != "undecided" else f"It is {_HOLDS[holds]}"
    ) + (
        f": drop {scale.drop(test.drop, test.drop_ci)} on {test.n_examples} examples that the search never "
        f"saw. Optimism (drop on the test split less drop on the search split): {scale.drop(optimism.value)}."
    )  # fmt: skip
    kind = ' class="warning"' if holds == "no" else ""
    return f'<p id="holds"{kind} data-holds="{escape(holds)}">{escape(text)}</p>'


def _choices(point: Point) -> str:
    stored = set(point.measurement.storage_only)
    rows = "".join(
        f'<tr><th scope="row" class="text">{escape(name)}</th><td class="text">{escape(choice)}</td>'
        f'<td class="text">{_nature(choice.weight_bits, name in stored)}</td></tr>'
        for name, choice in point.trial.candidate.choices
    )
    return (
        "<details><summary>Choices for each layer</summary>"
        '<div class="wide"><table id="choices"><thead><tr><th class="text" scope="col">layer</th>'
        '<th class="text" scope="col">choice</th><th class="text" scope="col">bits are</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details>"
    )


def _nature(bits: int, is_stored: bool) -> str:
    if bits == FLOAT_BITS:
        return "float"
    return "storage only" if is_stored else "native"


def _left_out(missing: Sequence[Missing]) -> list[str]:
    if not missing:
        return []
    items = "".join(f"<li>{escape(one.title)}: {escape(one.reason)}.</li>" for one in missing)
    return [f'<section id="left-out"><h2>Not drawn</h2><ul>{items}</ul></section>']


def _footer(outcome: Outcome) -> str:
    return (
        f"<footer>Search {escape(outcome.record.name)}, by autoq. Latencies are ratios to the float model, "
        "measured side by side in one process, times its median. Another CPU may rank models differently."
        "</footer>"
    )
