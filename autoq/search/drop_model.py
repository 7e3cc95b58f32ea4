"""From divergence to accuracy: how much of the metric a candidate loses, learnt from the trials so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoq.search.guide import Floats

_POWERS = (0.5, 0.75, 1.0)
_SPREAD = 0.35  # of a measured drop around the fit, relative: equal divergence is not equal loss
_FALLBACK = 0.5  # drop at a divergence of one, before anything is measured


@dataclass(frozen=True, slots=True)
class Seen:
    """One trial: how far its outputs are from the float model's, and what that cost."""

    divergence: float
    drop: float
    error: float  # standard error of the drop


class DropModel:
    """drop ≈ a · divergence^p, fitted by weighted least squares; p is the best of three.

    Small divergences flip as many examples to the better as to the worse, so a fit through all trials says
    more about what a candidate loses than its own few flips do.
    """

    def __init__(self, seen: Sequence[Seen]) -> None:
        usable = [one for one in seen if one.divergence > 0 and np.isfinite(one.divergence)]
        self._scale, self._power = _FALLBACK, 1.0
        if usable:
            self._scale, self._power = _fitted(usable)

    def predict(self, divergence: Floats) -> Floats:
        """Return the drop that each divergence is expected to cost."""
        return np.asarray(self._scale * np.maximum(divergence, 0.0) ** self._power)


def _fitted(seen: Sequence[Seen]) -> tuple[float, float]:
    divergence = np.array([one.divergence for one in seen])
    drop = np.array([one.drop for one in seen])
    best: tuple[float, float, float] | None = None
    for power in _POWERS:
        base = divergence**power
        # A large drop is known to a share of itself, a small one to the noise of the metric.
        spread = np.array([max(one.error, _SPREAD * abs(one.drop), 1e-4) for one in seen])
        weight = 1.0 / spread**2
        scale = float((weight * base * drop).sum() / (weight * base**2).sum())
        scale = max(scale, 1e-3 * float(np.abs(drop).max() / base.max()), 1e-9)
        misfit = float((weight * (drop - scale * base) ** 2).sum())
        if best is None or misfit < best[0]:
            best = (misfit, scale, power)
    assert best is not None
    return best[1], best[2]
