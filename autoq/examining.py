"""What this machine is fit for."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from autoq.evaluation.clock import machine_clock
from autoq.evaluation.timing import TimingSettings, measure_control
from autoq.graph.reference_model import INPUT, SHAPE, reference_model
from autoq.targets.cpu import this_cpu
from autoq.targets.onnxruntime_cpu import OnnxRuntimeTarget

_LOUD = 0.05  # noise floor that hides what most candidates differ by


@dataclass(frozen=True)
class Doctor:
    """What this machine is fit for."""

    environment: dict[str, Any]  # of the default target
    versions: dict[str, str]
    noise_floor: float | None  # half-width, as a fraction, of what two sessions of one model differ by
    warnings: tuple[str, ...]


def examine_machine() -> Doctor:
    """Describe runtimes and CPU, and measure the noise floor on a small reference model."""
    cpu, target, model = this_cpu(), OnnxRuntimeTarget(), reference_model()
    feeds = [{INPUT: np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)}]
    with machine_clock():
        control = measure_control(lambda: target.open(model), feeds, TimingSettings(), seed=0)
    warnings = []
    if cpu.saturates:
        warnings.append("u8 x s8 saturates without VNNI: int8 weights are limited to 7 bits")
    if not cpu.instruction_sets:
        warnings.append("the instruction sets of this CPU are unknown")
    if control.noise_floor > _LOUD:
        warnings.append(
            f"timings differ by ±{control.noise_floor:.1%} for no reason: is something else running?"
        )
    return Doctor(target.environment(), versions(), control.noise_floor, tuple(warnings))


def versions() -> dict[str, str]:
    """Versions of autoq and of what decides its results."""
    names = ("autoq", "onnxruntime", "onnx", "onnx-ir", "onnxscript", "optuna", "mlflow", "sqlalchemy",
             "torch", "numpy")  # fmt: skip
    return {name: version(name) for name in names}
