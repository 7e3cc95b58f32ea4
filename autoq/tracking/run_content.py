"""What a run shows: names, parameters, metrics and tags of searches and trials, as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import yaml

from autoq.core.choices import Candidate
from autoq.core.digests import canonical_json, digest_bytes
from autoq.core.measurements import Accuracy, Baseline, Interval, Latency, Measurement
from autoq.core.names import readable_name
from autoq.search.outcome import Outcome, Point, metric_name
from autoq.search.records import SearchRecord, TrialRecord, TrialState

# MLflow's own limits; the one for tags is that of servers before 3.0.
MAX_KEY_LENGTH = 250
MAX_PARAM_LENGTH = 6000
MAX_TAG_LENGTH = 5000

EXPERIMENT_PREFIX = "autoq/"
# What runs are found again by has our name in front; what people filter by has not.
SEARCH_TAG = "autoq.search"
CREATED_TAG = "autoq.created_at"  # only on parents: it tells a search from an earlier one of its name
TRIAL_TAG = "autoq.trial"  # only on children
DIGEST_TAG = "autoq.digest"
FEASIBLE_TAG = "feasible"
FRONT_TAG = "on_front"
WIDTH_PREFIX = "width/"  # of channel groups that are narrower than they were: units kept
GRAPH_PREFIX = "graph/"  # no layer name has a slash, so an op cannot shadow a layer


def experiment_name(record: SearchRecord) -> str:
    """Name the experiment of a search: one for all searches of a model, whatever they were after."""
    return f"{EXPERIMENT_PREFIX}{model_name(record.spec)}"


def model_name(spec: Mapping[str, Any]) -> str:
    """Name the model of a spec: its file without the suffix, or the function that makes it."""
    model = spec["model"]
    name = PurePath(model["path"]).stem if "path" in model else model["torch"].rpartition(":")[2]
    return readable_name(name) or "model"


def search_tags(record: SearchRecord) -> dict[str, str]:
    """Tags of the parent run: identity, what was searched, and where."""
    spec = record.spec
    bounds = {name: bound for name, bound in spec.get("constraints", {}).items() if bound is not None}
    tags = {
        SEARCH_TAG: record.name,
        CREATED_TAG: repr(record.created_at),
        "state": str(record.state),
        "message": record.message,
        "autoq.spec_digest": record.spec_digest,
        "autoq.model_digest": record.model_digest,
        "strategy": str(spec["search"]["strategy"]),
        "metric": metric_name(spec),
        "objectives": ", ".join(spec["objectives"]),
        "constraints": canonical_json(bounds),
        **_environment_tags(record.environment),
    }
    return _limited(tags, MAX_TAG_LENGTH)


def search_metrics(record: SearchRecord, outcome: Outcome | None = None) -> dict[str, float]:
    """Metrics of the parent run: baseline, preparation, counts, and the best point."""
    metrics = {f"preparation_s/{readable_name(part)}": s for part, s in record.preparation_s.items()}
    if record.baseline is not None:
        metrics |= _baseline_metrics(record.baseline)
    if outcome is not None:
        metrics |= {
            "n_trials": outcome.n_trials,
            "n_failed": outcome.n_failed,
            "n_feasible": sum(point.feasible for point in outcome.points),
            "n_front": len(outcome.front),
        }
        if outcome.best is not None:
            metrics["best_trial"] = outcome.best.trial.number
            metrics |= {f"best_{name}": value for name, value in point_metrics(outcome.best).items()}
    return metrics


def spec_text(record: SearchRecord) -> str:
    """Write the spec as YAML."""
    return yaml.safe_dump(_plain(record.spec), sort_keys=False, allow_unicode=True)


def trial_name(record: SearchRecord, trial: TrialRecord) -> str:
    """Name a child run so that it speaks: `t012 −0.3 pt 4.6x int8+fp32`."""
    formats = _formats(trial.candidate)
    if trial.measurement is None:
        return f"t{trial.number:03d} {trial.state} {formats}"
    repeat = " repeat" if trial.state is TrialState.REPEATED else ""
    score = score_text(record.spec, trial.measurement.accuracy)
    return f"t{trial.number:03d}{repeat} {score} {trial.measurement.latency.speedup:.1f}x {formats}"


def score_text(spec: Mapping[str, Any], accuracy: Accuracy) -> str:
    """Say how good a candidate is: `−0.3 pt` against the baseline, or the value of a user's metric."""
    if not isinstance(spec["metric"], str):
        return f"{metric_name(spec)} {accuracy.value:.4g}"
    # The built-in metrics are fractions, higher is better. Adding zero turns -0.0 into 0.0.
    return f"{round(-100 * accuracy.drop, 1) + 0.0:+.1f} pt".replace("-", "−")


def trial_params(candidate: Candidate) -> dict[str, str]:
    """One parameter a layer, ops and rewrites under `graph/`, widths under `width/`."""
    layers = {readable_name(name): str(choice) for name, choice in candidate.choices}
    ops = {GRAPH_PREFIX + readable_name(name): str(precision) for name, precision in candidate.graph}
    widths = {WIDTH_PREFIX + readable_name(group): str(units) for group, units in candidate.rewrites.widths}
    rewrites = candidate.rewrites
    about = {} if rewrites.changes_nothing else {GRAPH_PREFIX + "rewrites": str(rewrites)}
    return _limited(layers | ops | about | widths, MAX_PARAM_LENGTH)


def trial_metrics(trial: TrialRecord) -> dict[str, float]:
    """What the trial measured, and where its time went."""
    measured = measurement_metrics(trial.measurement) if trial.measurement else {}
    return measured | trial_seconds(trial)


def trial_seconds(trial: TrialRecord) -> dict[str, float]:
    """Where the trial's time went; a live run is written before the last of it is known."""
    seconds = {**(trial.measurement.seconds if trial.measurement else {}), **trial.seconds}
    return {f"seconds/{readable_name(part)}": value for part, value in seconds.items()}


def trial_tags(record: SearchRecord, trial: TrialRecord, *, feasible: bool) -> dict[str, str]:
    """Tags of a child run; who is on the front is only known at the end."""
    storage_only = trial.measurement.storage_only if trial.measurement else ()
    is_estimate = trial.measurement is not None and trial.measurement.accuracy.is_estimate
    tags = {
        SEARCH_TAG: record.name,
        TRIAL_TAG: str(trial.number),
        DIGEST_TAG: trial.digest,
        FEASIBLE_TAG: _text(feasible),
        FRONT_TAG: _text(False),
        "origin": trial.origin,
        "reason": reason_text(trial),
        "state": str(trial.state),
        "failure": trial.reason,
        "storage_only": ", ".join(storage_only),
        "estimate": "true" if is_estimate else "",  # of the accuracy: scoring was stopped early
    }
    return _limited({name: value for name, value in tags.items() if value}, MAX_TAG_LENGTH)


def reason_text(trial: TrialRecord) -> str:
    """Say why a candidate was tried: what the strategy noted, else where it came from."""
    reasons = trial.reasons
    return "; ".join(f"{name}: {_text(why)}" for name, why in reasons.items()) or trial.origin


def point_metrics(point: Point) -> dict[str, float]:
    """Metrics of a measured candidate with its final timing, and with the test split if there is one."""
    metrics = measurement_metrics(point.measurement)
    if point.test is not None:
        metrics |= _accuracy_metrics("test_accuracy", point.test.accuracy)
    return metrics


def point_tags(point: Point, *, on_front: bool) -> dict[str, str]:
    """Tags of a child run that the end of the search decides."""
    tags = {FEASIBLE_TAG: _text(point.feasible), FRONT_TAG: _text(on_front)}
    return tags | ({"holds": point.test.holds} if point.test is not None else {})


def measurement_metrics(measurement: Measurement) -> dict[str, float]:
    """Every figure of a measurement; `_lo` and `_hi` are its 95 % interval."""
    return {
        **_accuracy_metrics("accuracy", measurement.accuracy),
        "n_examples": measurement.accuracy.n_examples,
        **_latency_metrics(measurement.latency),
        "size_bytes": measurement.size.size_bytes,
        "bundle_bytes": measurement.size.bundle_bytes,
    }


def _accuracy_metrics(name: str, accuracy: Accuracy) -> dict[str, float]:
    return {
        name: accuracy.value,
        f"{name}_drop": accuracy.drop,
        **_interval(f"{name}_drop", accuracy.drop_ci),
    }


def _latency_metrics(latency: Latency) -> dict[str, float]:
    return {
        "latency_ms": latency.latency_ms,
        **_interval("latency_ms", latency.latency_ms_ci),
        "latency_p90_ms": latency.p90_ms,
        "speedup": latency.speedup,
        **_interval("speedup", latency.speedup_ci),
    }


def _baseline_metrics(baseline: Baseline) -> dict[str, float]:
    metrics = {
        "baseline_accuracy": baseline.accuracy,
        "baseline_latency_ms": baseline.latency_ms,
        **_interval("baseline_latency_ms", baseline.latency_ms_ci),
        "baseline_latency_p90_ms": baseline.latency_p90_ms,
        "baseline_size_bytes": baseline.size_bytes,
        "noise_floor": baseline.noise_floor,
    }
    if baseline.test_accuracy is not None:
        metrics["baseline_test_accuracy"] = baseline.test_accuracy
    return metrics


def _interval(name: str, interval: Interval | None) -> dict[str, float]:
    return {} if interval is None else {f"{name}_lo": interval[0], f"{name}_hi": interval[1]}


def _environment_tags(environment: Mapping[str, Any]) -> dict[str, str]:
    """One tag for each thing known of the machine, one level deep: `env.cpu.model`."""
    tags = {}
    for key, value in environment.items():
        parts = value if isinstance(value, Mapping) else {"": value}
        for part, one in parts.items():
            name = ".".join(["env", readable_name(key), *([readable_name(part)] if part else [])])
            tags[name] = ", ".join(map(str, one)) if isinstance(one, (list, tuple)) else _text(one)
    return tags


def _formats(candidate: Candidate) -> str:
    """Formats of a candidate, the most frequent first: `int8+fp32`."""
    counted = Counter(str(choice.format) for _, choice in candidate.choices)
    return "+".join(name for name, _ in counted.most_common()) or "fp32"


def _limited(texts: Mapping[str, str], max_length: int) -> dict[str, str]:
    return {_cut(name, MAX_KEY_LENGTH): _cut(text, max_length) for name, text in texts.items()}


def _cut(text: str, max_length: int) -> str:
    """Shorten a text; a digest at its end keeps different texts different."""
    if len(text) <= max_length:
        return text
    mark = "..." + digest_bytes(text.encode())[:12]
    return text[: max_length - len(mark)] + mark


def _text(value: object) -> str:
    return value if isinstance(value, str) else canonical_json(_plain(value))


def _plain(value: Any) -> Any:
    """Turn mappings, sequences and enums into what YAML and JSON write without tags."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, str) else value
