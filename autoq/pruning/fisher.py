"""Fisher scores: what a loss changes by, to second order, when units of a channel group are masked.

After Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers" (arXiv:2204.09656). Their
rescaling of the masks that stay, by least squares, is a special case of what follows every criterion here:
all weights of the consumers are refitted by least squares, not one number a unit (`autoq.pruning.refit`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from autoq.core.data import Array, Feed
from autoq.core.groups import ChannelGroup, Role
from autoq.core.layers import Layer
from autoq.graph.torch_gradients import DifferentiableModule, OutputLoss
from autoq.pruning.consumers import Consumer, Floats, Indices
from autoq.pruning.parameters import Match, match_parameters
from autoq.variants.rows import to_rows

Doubles = npt.NDArray[np.float64]

MAX_EXAMPLES = 256
_NORMALISED = 1e-4  # share of what moves in a row that is left of it where its length does not matter


@dataclass(frozen=True, eq=False)
class MaskGradients:
    """The gradient of a loss by a mask on each column of layers' weights, for each example.

    That is Σ_rows W ⊙ ∂L/∂W. A batch norm that was folded into the rows does not change it: the scale of
    each row cancels.
    """

    by_layer: Mapping[str, Floats] = field(default_factory=dict)  # (examples, row groups, columns)
    missing: Mapping[str, str] = field(default_factory=dict)  # why other layers have none

    def why_none(self, group: ChannelGroup) -> str | None:
        """Say why the gradients of a group's units are not known; None if they are."""
        readers = (member.layer for member in group.members if member.role is Role.READS)
        unknown = (name for name in readers if name not in self.by_layer)
        return next((self.missing.get(name, "not asked for") for name in unknown), None)

    def of_units(self, consumers: Sequence[Consumer], n_units: int) -> Doubles:
        """Sum over the columns of each unit, in all that reads it: (examples, n_units).

        Raises:
            KeyError: Those of a consumer are not known.
        """
        n_examples = len(self.by_layer[consumers[0].layer])
        found = np.zeros((n_units, n_examples))
        for one in consumers:
            columns = self.by_layer[one.layer][:, one.row_group, one.columns]
            np.add.at(found, one.units, columns.T.astype(np.float64))
        return np.ascontiguousarray(found.T)


def order_by_fisher(gradients: Doubles) -> Indices:
    """Order units, the least important first: each is the one whose removal adds least to what is lost.

    With F = Σ g gᵀ over examples, a removal adds F_uu + 2 Σ F_uv over the units v that went before: the
    warm start and the rearrangement of Kwon et al. in one, and nested. F itself is never written down.

    Args:
        gradients: g of each example, (examples, units).

    Returns:
        Shape (units,), every unit once.
    """
    n_units = gradients.shape[1]
    adds = np.einsum("iu,iu->u", gradients, gradients)
    order = np.empty(n_units, np.int64)
    for place in range(n_units):
        order[place] = unit = int(np.argmin(adds))
        adds += 2.0 * (gradients[:, unit] @ gradients)
        adds[order[: place + 1]] = np.inf
    return order


def collect_mask_gradients(
    module: DifferentiableModule,
    layers: Sequence[Layer],
    weights: Mapping[str, Array],
    readers: Collection[str],
    feeds: Iterable[Feed],
    loss: OutputLoss,
) -> MaskGradients:
    """Run a module over examples, forwards and backwards.

    What cannot be known is left out, with the reason: layers whose weight is no parameter of the module, or
    one that the module normalises: what is masked in it comes back by the length of its rows.

    Args:
        module: What the model was exported from.
        layers: All layers of the model.
        weights: Their weights.
        readers: Those wanted.
        feeds: One example each.
        loss: What is differentiated.

    Raises:
        ModelError: The module fails, or cannot be differentiated.
    """
    matches, missing = match_parameters(layers, weights, module.parameters)
    wanted = {one: matches[one.name] for one in layers if one.name in readers and one.name in matches}
    examples = list(_by_example(module, wanted, feeds, loss))
    by_layer = {}
    for name in (layer.name for layer in wanted):
        if not examples or not all(name in one for one in examples):
            missing[name] = "a weight that reads it has no gradient, or several uses"
        elif not np.isfinite(rows := np.stack([one[name].by_column for one in examples])).all():
            missing[name] = "gradients that are not finite"
        elif rows.any() and max(one[name].along_rows for one in examples) < _NORMALISED:
            missing[name] = "a weight that reads it is normalised by the module"
        else:
            by_layer[name] = rows
    return MaskGradients(by_layer, missing)


@dataclass(frozen=True, slots=True)
class _Sums:
    """What is kept of weight ⊙ gradient, for one example."""

    by_column: Floats  # (row groups, columns)
    along_rows: float  # largest |sum| of a row, as a share of its Σ|·|: 0 if no row's length matters


def _by_example(
    module: DifferentiableModule, wanted: Mapping[Layer, Match], feeds: Iterable[Feed], loss: OutputLoss
) -> Iterator[dict[str, _Sums]]:
    """Yield the sums of each layer whose gradient is known."""
    names = [match.parameter for match in wanted.values()]
    for products in module.products(names, feeds, loss) if names else ():
        yield {
            layer.name: _summed(products[match.parameter], match, layer)
            for layer, match in wanted.items()
            if match.parameter in products
        }


def _summed(product: Floats, match: Match, layer: Layer) -> _Sums:
    rows = to_rows(match.to_weight(product, layer), layer)
    moved = np.abs(rows).sum(axis=2)
    along = np.abs(rows.sum(axis=2)) / np.where(moved > 0.0, moved, 1.0)
    return _Sums(rows.sum(axis=1), float(along.max()))
