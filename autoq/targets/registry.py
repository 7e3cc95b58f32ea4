"""Targets by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from autoq.core.errors import SpecError, UnknownNameError
from autoq.evaluation.ports import Target
from autoq.targets.onnxruntime_cpu import OnnxRuntimeTarget


class TargetSettings(Protocol):
    """What a spec says of its target."""

    @property
    def runtime(self) -> str:
        """Name of the runtime."""
        ...

    @property
    def device(self) -> str:
        """Device of the runtime."""
        ...

    @property
    def threads(self) -> int:
        """Threads of one run."""
        ...

    @property
    def batch_size(self) -> int:
        """Examples a run."""
        ...


TargetFactory = Callable[[TargetSettings], Target]


def _onnxruntime(settings: TargetSettings) -> Target:
    if settings.device != "cpu":
        raise SpecError(f"target.device: onnxruntime has no device {settings.device!r}, expected cpu")
    return OnnxRuntimeTarget(threads=settings.threads, batch_size=settings.batch_size)


FACTORIES: Mapping[str, TargetFactory] = {"onnxruntime": _onnxruntime}


def create_target(settings: TargetSettings, factories: Mapping[str, TargetFactory] = FACTORIES) -> Target:
    """Build the target that a spec names.

    Raises:
        UnknownNameError: No such runtime.
        SpecError: The runtime has no such device.
    """
    if settings.runtime not in factories:
        known = ", ".join(sorted(factories))
        raise UnknownNameError(
            f"target.runtime: no runtime named {settings.runtime!r}", hint=f"known runtimes: {known}"
        )
    return factories[settings.runtime](settings)
