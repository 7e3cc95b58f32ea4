"""What evaluation needs from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from autoq.core.artifacts import AssembledModel as AssembledModel
from autoq.core.artifacts import ModelArtifact
from autoq.core.choices import Candidate, Choice
from autoq.core.data import Array, Feed
from autoq.core.layers import Layer, OpFamily


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a target says of a choice."""

    legal: bool
    native: bool = True  # False: stored smaller, but computed as its container is
    reason: str = ""  # why it is refused, or why it is storage only


class Session(Protocol):
    """A model loaded on a target."""

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch and return every output by name. Safe to call from several threads."""
        ...

    def time_block(self, n_runs: int, feeds: Sequence[Feed]) -> float:
        """Run `n_runs` times over `feeds` in turn and return seconds, measured where the device is."""
        ...

    def close(self) -> None:
        """Free the device's memory."""
        ...


class Target(Protocol):
    """Hardware and runtime on which candidates are timed. Its contract: `autoq.testing.TargetContract`.

    A target pickles: the process of the trials gets a copy of it.
    """

    @property
    def name(self) -> str:
        """Readable identity: runtime, device, threads."""
        ...

    @property
    def batch_size(self) -> int:
        """Examples a run; models are scored and timed at it."""
        ...

    def environment(self) -> dict[str, Any]:
        """Describe runtime version, CPU, instruction sets and threads; JSON-able, part of cache keys."""
        ...

    def judge(self, layer: Layer, choice: Choice) -> Verdict:
        """Say whether the target runs this choice on this layer, natively or storage-only."""
        ...

    def judge_op(self, family: OpFamily) -> Verdict:
        """Say whether weightless ops of this family may run in int8."""
        ...

    def profile(self, model: ModelArtifact, feeds: Sequence[Feed]) -> dict[str, float]:
        """Seconds of one run by kernel, under the names that nodes have in the model; {} where unknown.

        Raises:
            RuntimeRejectedModel: The runtime refused the model; trying again cannot help.
        """
        ...

    def open(self, model: ModelArtifact, *, optimize: bool = True) -> Session:
        """Load a model for running. `optimize=False` runs the graph as written, for checking.

        Raises:
            RuntimeRejectedModel: The runtime refused the model; trying again cannot help.
            TargetUnavailable: The device cannot be reached; trying again may help.
        """
        ...


class Assembler(Protocol):
    """Turns candidates into models."""

    def float_model(self) -> ModelArtifact:
        """Return the baseline: float, prepared with the same graph optimisations."""
        ...

    def assemble(self, candidate: Candidate) -> AssembledModel:
        """Build the model of a candidate.

        Raises:
            TrialError: The candidate cannot be built.
        """
        ...


class OutputCache(Protocol):
    """Keeps what the float model gave on a split, for later searches of the same model."""

    @property
    def max_bytes(self) -> int:
        """Size of outputs above which they are not worth keeping."""
        ...

    def load(self, key: str) -> list[dict[str, Array]] | None:
        """Return outputs bit by bit as they were saved, chunk by chunk; None if they are not kept."""
        ...

    def save(self, key: str, outputs: Sequence[Mapping[str, Array]]) -> None:
        """Keep outputs if they can be kept; never fails."""
        ...
