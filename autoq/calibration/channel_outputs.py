"""Mean and variance of every channel of some tensors: what batch normalisation would have recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoq.calibration.tensor_run import TensorRun
from autoq.core.data import Array, Split
from autoq.graph.float_model import FloatModel

Figures = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class ChannelFigures:
    """One tensor over the data, channel by channel."""

    mean: Figures  # (channels,)
    variance: Figures  # (channels,)

    def of(self, channels: npt.NDArray[np.integer[npt.NBitBase]]) -> ChannelFigures:
        """Return the figures of some channels."""
        return ChannelFigures(self.mean[channels], self.variance[channels])


def collect_channel_figures(
    model: FloatModel, values: Sequence[str], split: Split
) -> dict[str, ChannelFigures]:
    """Run a split through a float model and return the figures of tensors whose channels are axis 1.

    Memory does not grow with the number of batches.

    Raises:
        DataError: The runtime refuses a batch, or there is none.
        ModelError: The runtime refuses the model.
    """
    sums = {name: _Sums() for name in values}
    for seen in TensorRun(model, values, split).batches():
        for name, one in sums.items():
            one.add(seen.real(name))
    return {name: one.figures() for name, one in sums.items()}


class _Sums:
    """Count, mean and squares about it, merged batch by batch (Chan et al. 1979): nothing cancels."""

    def __init__(self) -> None:
        self._n = 0
        self._mean: Figures = np.zeros(1)
        self._squares: Figures = np.zeros(1)

    def add(self, array: Array) -> None:
        axes = (0, *range(2, array.ndim))
        n = array.size // max(array.shape[1], 1)
        if n == 0:
            return
        mean = array.mean(axis=axes, dtype=np.float64)
        squares = array.var(axis=axes, dtype=np.float64) * n
        apart, total = mean - self._mean, self._n + n
        self._squares = self._squares + squares + apart**2 * (self._n * n / total)
        self._mean = self._mean + apart * (n / total)
        self._n = total

    def figures(self) -> ChannelFigures:
        return ChannelFigures(self._mean, self._squares / max(self._n, 1))
