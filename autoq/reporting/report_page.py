"""The report of a search: what was found, on what, how sure it is, and the pictures."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from autoq.core.choices import FLOAT_BITS
from autoq.core.measurements import Baseline
from autoq.reporting import figures
from autoq.reporting.charts import Missing
from autoq.reporting.figures import Scale
from autoq.reporting.html_page import build_page, escape, figure_html
from autoq.reporting.pictures import Content, draw_pictures
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
        *_front_table(outcome),
        *map(figure_html, rest),
        _data(content),
        *_left_out(missing),
        "</main>",
        _footer(outcome),
    ]
    return build_page(f"{outcome.record.name}: autoq report", body, charts)


def optimism(point: Point) -> float | None:
    """Return by how much the drop on unseen data exceeds the one the search saw; None without a test split."""
    if point.test is None:
        return None
    return point.test.accuracy.drop - point.measurement.accuracy.drop


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
        (scale.metric, scale.value(accuracy.value), f"{accuracy.n_examples} examples of the search split"),
        ("drop", scale.drop(accuracy.drop), _between(scale.drop(0.0, accuracy.drop_ci), accuracy.drop_ci)),
        ("latency", f"{figures.significant(latency.latency_ms)} ms", _ms_ci(point)),
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


def _between(text: str, interval: object) -> str:
    return "no interval: the metric is one number for the set" if interval is None else text[text.index("[") :]


def _ms_ci(point: Point) -> str:
    low, high = (figures.significant(end) for end in point.measurement.latency.latency_ms_ci)
    return f"[{low}, {high}]"


def _test_sentence(point: Point, scale: Scale) -> str:
    gap = optimism(point)
    if point.test is None or gap is None:
        return '<p id="holds">No figure is checked on unseen data: the test split has not been used.</p>'
    test, holds = point.test.accuracy, point.test.holds
    text = (
        f"It {_HOLDS[holds]}" if holds != "undecided" else f"It is {_HOLDS[holds]}"
    ) + (
        f": drop {scale.drop(test.drop, test.drop_ci)} on {test.n_examples} examples that the search never "
        f"saw. Optimism (drop on the test split less drop on the search split): {scale.drop(gap)}."
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


# --- the front ---------------------------------------------------------------------------------------


def _front_table(outcome: Outcome) -> list[str]:
    baseline, scale = outcome.record.baseline, Scale.of(outcome.record.spec)
    if baseline is None or not outcome.front:
        return []
    tested = any(point.test for point in outcome.front)
    heads = ["trial", "found by", scale.metric, "drop", "latency (ms)", "speed-up", "file MB", "bundle MB"]
    heads += [f"test {scale.metric}", "holds"] if tested else []
    heads.append("feasible")
    text = {"found by", "holds", "feasible"}
    head = "".join(
        f'<th scope="col"{_class("text" if name in text else "")}>{escape(name)}</th>' for name in heads
    )
    best = outcome.best.trial.number if outcome.best else None
    rows = "".join(_front_row(point, scale, tested, point.trial.number == best) for point in outcome.front)
    return [
        '<section id="front"><h2>The front</h2><div class="wide" tabindex="0" role="region" '
        'aria-label="The front, a table"><table id="front-table">'
        "<caption>Fastest first; intervals are 95 %. Positive drops are worse than the float model.</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{_baseline_row(baseline, scale, tested)}{rows}</tbody>"
        "</table></div></section>"
    ]


def _front_row(point: Point, scale: Scale, tested: bool, is_best: bool) -> str:
    accuracy, latency, size = point.measurement.accuracy, point.measurement.latency, point.measurement.size
    drop, _, between = scale.drop(accuracy.drop, accuracy.drop_ci).partition(" [")
    cells = [
        _cell(point.trial.origin, kind="text"),
        _cell(scale.value(accuracy.value)),
        _cell(drop, f"[{between}" if between else ""),
        _cell(figures.significant(latency.latency_ms), _ms_ci(point)),
        _cell(f"{latency.speedup:.2f}x"),
        _cell(figures.significant(size.size_bytes / 1e6)),
        _cell(figures.significant(size.bundle_bytes / 1e6)),
    ]
    if tested:
        cells.append(_cell(scale.value(point.test.accuracy.value) if point.test else ""))
        cells.append(_cell(point.test.holds if point.test else "", kind="text"))
    cells.append(_cell("yes" if point.feasible else "no", kind="text"))
    number = f"★ {point.trial.number}" if is_best else str(point.trial.number)
    kind = "best" if is_best else ""
    return f'<tr{_class(kind)} data-trial="{point.trial.number}"><th scope="row">{number}</th>{"".join(cells)}</tr>'


def _baseline_row(baseline: Baseline, scale: Scale, tested: bool) -> str:
    low, high = (figures.significant(end) for end in baseline.latency_ms_ci)
    test = "" if baseline.test_accuracy is None else scale.value(baseline.test_accuracy)
    cells = [
        _cell("float model", kind="text"),
        _cell(scale.value(baseline.accuracy)),
        _cell(""),
        _cell(figures.significant(baseline.latency_ms), f"[{low}, {high}]"),
        _cell("1.00x"),
        _cell(figures.significant(baseline.size_bytes / 1e6)),
        _cell(""),
        *([_cell(test), _cell("")] if tested else []),
        _cell(""),
    ]
    return f'<tr class="baseline"><th scope="row"></th>{"".join(cells)}</tr>'


def _cell(text: str, interval: str = "", *, kind: str = "") -> str:
    more = f' <small class="interval">{escape(interval)}</small>' if interval else ""
    return f"<td{_class(kind)}>{escape(text)}{more}</td>"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


# --- data --------------------------------------------------------------------------------------------


def _data(content: Content) -> str:
    pairs = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in describe(content.outcome).items()
    )
    return f'<section id="data"><h2>What was measured, and where</h2><dl class="pairs">{pairs}</dl></section>'


def describe(outcome: Outcome) -> dict[str, str]:
    """Name the data of a search: what, on what, when, how exact; no path of the machine is in it."""
    record, environment = outcome.record, outcome.record.environment
    spec, baseline = record.spec, outcome.record.baseline
    search = spec["search"]
    pairs = {
        "search": f"{record.name}, {record.state}: {record.message}" if record.message else record.name,
        "model": _model(spec),
        "objectives": ", ".join(spec["objectives"]),
        "bounds": _bounds(spec.get("constraints", {})),
        "strategy": f"{search['strategy']}, seed {search.get('seed', 'unknown')}",
        "target": _target(environment),
        "machine": _machine(environment.get("cpu")),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(record.created_at)),
        "examples": _examples(outcome),
    }
    if baseline is not None:
        pairs["noise floor"] = (
            f"±{baseline.noise_floor:.1%}: two sessions of the same float model differ by as much"
        )
    pairs["autoq"] = str(environment.get("autoq_version", "unknown"))
    pairs["digest of model and data"] = record.model_digest
    return pairs


def _model(spec: Mapping[str, Any]) -> str:
    model = spec.get("model", {})
    if path := model.get("path"):
        return PurePath(path).name
    factory = str(model.get("torch", "unknown"))
    place, colon, function = factory.rpartition(":")
    return f"{PurePath(place).name}{colon}{function}"


def _bounds(constraints: Mapping[str, Any]) -> str:
    kept = [f"{name} {bound:g}" for name, bound in constraints.items() if bound is not None]
    return ", ".join(kept) or "none"


def _target(environment: Mapping[str, Any]) -> str:
    runtime = f"{environment.get('runtime', 'unknown')} {environment.get('runtime_version', '')}".strip()
    threads, batch = environment.get("threads", "?"), environment.get("batch_size", "?")
    return f"{runtime}, {threads} thread(s), batch size {batch}"


def _machine(cpu: Any) -> str:
    if not isinstance(cpu, Mapping):
        return str(cpu or "unknown")
    sets = ", ".join(cpu.get("instruction_sets", [])) or "unknown"
    return f"{cpu.get('model', 'an unknown CPU')}, instruction sets {sets}"


def _examples(outcome: Outcome) -> str:
    if not outcome.points:
        return "none yet"
    search = max(point.measurement.accuracy.n_examples for point in outcome.points)
    tests = [point.test.accuracy.n_examples for point in outcome.points if point.test]
    return f"{search} in the search split, " + (f"{max(tests)} in the test split" if tests else "no test split used")


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
