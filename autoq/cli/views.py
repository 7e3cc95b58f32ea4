"""The JSON objects that commands print, where they are not the outcome's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoq.app import CacheUse
    from autoq.estimating import Estimate
    from autoq.examining import Doctor
    from autoq.inspecting import ChoiceError, Inspection, Sensitivity
    from autoq.search.outcome import Outcome
    from autoq.search.records import SearchRecord, TrialRecord


def estimate_json(estimate: Estimate) -> dict[str, Any]:
    """Return what a search would cost: seconds and bytes, upper estimates."""
    return asdict(estimate)


def searches_json(searches: Sequence[tuple[SearchRecord, int]]) -> dict[str, Any]:
    """Return all searches with their numbers of trials."""
    return {
        "searches": [
            {
                "search": record.name,
                "state": str(record.state),
                "strategy": record.spec["search"]["strategy"],
                "trials": n_trials,
                "created_at": record.created_at,
                "model": model_name(record.spec),
                "message": record.message,
            }
            for record, n_trials in searches
        ]
    }


def search_json(outcome: Outcome, trials: Sequence[TrialRecord]) -> dict[str, Any]:
    """Return the overview of a search: what `front` tells, its spec, preparation and all trials."""
    return {
        **outcome.to_json(),
        "spec": dict(outcome.record.spec),
        "created_at": outcome.record.created_at,
        "message": outcome.record.message,
        "preparation_s": dict(outcome.record.preparation_s),
        **_hindsight_json(outcome, trials),
        "all_trials": [trial_json(outcome, trial) for trial in trials],
    }


def _hindsight_json(outcome: Outcome, trials: Sequence[TrialRecord]) -> dict[str, Any]:
    from autoq.search.hindsight import latency_hindsight, optimism_of

    latency, optimism = latency_hindsight(trials), optimism_of(outcome.best)
    return {
        "latency_model": None if latency is None else latency.to_json(),
        "optimism": None if optimism is None else optimism.to_json(),
    }


def trial_json(outcome: Outcome, trial: TrialRecord) -> dict[str, Any]:
    """Return one trial; the figures are there if it, or the trial it repeats, was measured."""
    point = next((point for point in outcome.points if point.trial.digest == trial.digest), None)
    figures = replace(point, trial=trial).to_json() if point else {"feasible": False}
    return {
        "trial": trial.number,
        "origin": trial.origin,
        "digest": trial.digest,
        "state": str(trial.state),
        "reason": trial.reason,
        "reasons": dict(trial.reasons),
        "repeats": repeated_number(outcome, trial),
        "on_front": any(member.trial.number == trial.number for member in outcome.front),
        **figures,
        **trial.candidate.to_json(),
        "seconds": dict(trial.seconds),
    }


def repeated_number(outcome: Outcome, trial: TrialRecord) -> int | None:
    """Return the number of the measured trial that this one repeats, if it does."""
    first = next((p.trial.number for p in outcome.points if p.trial.digest == trial.digest), None)
    return None if first == trial.number else first


def inspection_json(inspection: Inspection) -> dict[str, Any]:
    """Return a model's inputs, outputs and layers, each with what the target says of every format.

    With a spec each layer has what the space offers: label -> lowest and highest weight bits.
    """
    summary = inspection.summary
    return {
        "digest": summary.digest,
        "size_bytes": summary.size_bytes,
        "inputs": [asdict(tensor) for tensor in summary.inputs],
        "outputs": [asdict(tensor) for tensor in summary.outputs],
        "layers": [
            {
                "name": layer.name,
                "op": layer.op,
                "weight_shape": list(layer.weight_shape),
                "group": layer.group,
                "parameters": layer.n_params,
                "latency_share": inspection.latency_share.get(layer.name),
                "formats": {name: asdict(v) for name, v in inspection.verdicts[layer.name].items()},
                **_offered_json(inspection, layer.name),
            }
            for layer in summary.layers
        ],
        "weightless_ops": [asdict(op) for op in summary.ops],
    }


def _offered_json(inspection: Inspection, layer: str) -> dict[str, Any]:
    if layer not in inspection.space:
        return {}
    return {"space": {label: list(bits) for label, bits in inspection.space[layer].legal.items()}}


def sensitivity_json(sensitivity: Sensitivity) -> dict[str, Any]:
    """Return the local error of every choice, layers in the order of the graph.

    Errors are mean squares summed over the layer's outputs, and null where nothing is known of its
    inputs; the ratio in dB is null as well where the error is 0.
    """
    return {
        "search": sensitivity.name,
        "n_examples": sensitivity.n_examples,
        "rewrites": sensitivity.rewrites.to_json(),
        "most_sensitive_first": sensitivity.most_sensitive_first(),
        "layers": {
            layer: [_choice_error_json(one) for one in errors] for layer, errors in sensitivity.errors.items()
        },
    }


def _choice_error_json(one: ChoiceError) -> dict[str, Any]:
    is_known = one.relative is not None
    ratio = one.sqnr_db
    return {
        "choice": str(one.choice),
        "label": one.choice.label,
        **one.choice.to_json(),
        "sqnr_db": None if ratio is None or math.isinf(ratio) else ratio,
        "relative_error": one.relative,
        "weight_error": one.error.weight if is_known else None,
        "activation_error": one.error.activation if is_known else None,
        "output_energy": one.error.energy if is_known else None,
    }


def cache_json(uses: Sequence[CacheUse], freed_bytes: int) -> dict[str, Any]:
    """Return what each cache holds, and what was freed just now."""
    return {"caches": [asdict(use) for use in uses], "freed_bytes": freed_bytes}


def doctor_json(doctor: Doctor, strategies: Sequence[str]) -> dict[str, Any]:
    """Return what the machine can do; the noise floor is a fraction of a latency."""
    return {**asdict(doctor), "strategies": list(strategies)}


def model_name(spec: Mapping[str, Any]) -> str:
    """Return the file or the factory that a spec takes its model from."""
    model = spec["model"]
    return str(model.get("path") or model.get("torch"))
