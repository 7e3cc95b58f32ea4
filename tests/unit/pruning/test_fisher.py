from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from autoq.core.data import Array, Feed
from autoq.core.errors import ModelError
from autoq.core.groups import ChannelGroup, GroupKind, Member, Role
from autoq.core.layers import Layer
from autoq.graph.torch_gradients import DifferentiableModule, OutputLoss
from autoq.pruning.consumers import Consumer
from autoq.pruning.fisher import MaskGradients, collect_mask_gradients, order_by_fisher
from autoq.testing.sequence_families import bert
from autoq.testing.torch_parts import seeded

Doubles = NDArray[np.float64]

SCORES = OutputLoss(0, 1, is_class_scores=True)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(F.relu(self.second(torch.tanh(self.first(x)))))
        return logits


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.grouped, self.grouped_norm = nn.Conv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        x = F.relu(self.grouped_norm(self.grouped(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def folded(conv: nn.Module, norm: nn.Module) -> Array:
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().numpy()
    scale[1], scale[2] = -scale[1], 3 * scale[2]  # whatever a norm multiplies rows by
    return conv.weight.detach().numpy() * scale[:, None, None, None]


def transposed(module: nn.Module) -> Array:
    return module.weight.detach().numpy().T


def mlp_case() -> tuple[nn.Module, list[Layer], dict[str, Array], list[Feed]]:
    module = seeded(Mlp)
    layers = [Layer("second", "MatMul", (8, 8), 1), Layer("head", "Gemm", (4, 8), 0)]
    weights = {"second": transposed(module.second), "head": module.head.weight.detach().numpy()}
    return module, layers, weights, draw({"x": (1, 6)})


def conv_case() -> tuple[nn.Module, list[Layer], dict[str, Array], list[Feed]]:
    module = seeded(ConvNet)
    layers = [
        Layer("stem", "Conv", (8, 3, 3, 3), 0),
        Layer("grouped", "Conv", (8, 4, 3, 3), 0, group=2),
        Layer("head", "MatMul", (8, 4), 1),
    ]
    weights = {
        "stem": folded(module.stem, module.stem_norm),
        "grouped": folded(module.grouped, module.grouped_norm),
        "head": transposed(module.head),
    }
    return module, layers, weights, draw({"x": (1, 3, 8, 8)})


def bert_case() -> tuple[nn.Module, list[Layer], dict[str, Array], list[Feed]]:
    module, rng = bert(), np.random.default_rng(0)
    parts = {f"blocks.{index}.{name}" for index in range(2) for name in ("query", "dense", "output")}
    weights = {name: transposed(module.get_submodule(name)) for name in sorted(parts)}
    layers = [Layer(name, "MatMul", weight.shape, 1) for name, weight in weights.items()]
    feeds = [
        {"tokens": rng.integers(0, 32, (1, length)), "mask": (np.arange(length) < 4).astype(np.int64)[None]}
        for length in (4, 6, 9)
    ]
    return module, layers, weights, feeds


class Normalised(nn.Module):
    """The length of a row of its second weight is not what the layer multiplies by."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 4)
        self.second = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(F.relu(self.second(torch.tanh(self.first(x)))))
        return logits


def draw(shapes: Mapping[str, tuple[int, ...]]) -> list[Feed]:
    rng = np.random.default_rng(0)
    return [{k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()} for _ in range(3)]


def by_masks(module: nn.Module, name: str, feeds: Sequence[Feed], loss: OutputLoss) -> Doubles:
    """The slow way: a mask is multiplied into what a layer reads, and the loss is differentiated by it."""
    part = module.get_submodule(name)
    is_conv = isinstance(part, nn.Conv2d)
    n_channels = part.in_channels if is_conv else part.in_features
    rows = []
    for index, feed in enumerate(feeds):
        mask = torch.ones(n_channels, requires_grad=True)
        shaped = mask[:, None, None] if is_conv else mask
        hook = part.register_forward_pre_hook(lambda _, args, by=shaped: (args[0] * by,))
        value = loss.of(module(*map(torch.tensor, feed.values())), index)
        rows.append(torch.autograd.grad(value, mask)[0].numpy())
        hook.remove()
    return np.stack(rows).astype(np.float64)


@pytest.mark.parametrize("case", [mlp_case, conv_case, bert_case])
@pytest.mark.parametrize("loss", [SCORES, OutputLoss(0, 1, is_class_scores=False)])
def test_gradients_are_those_of_a_mask_on_what_a_layer_reads(
    case: Callable[[], tuple[nn.Module, list[Layer], dict[str, Array], list[Feed]]], loss: OutputLoss
) -> None:
    module, layers, weights, feeds = case()
    inputs = tuple(feeds[0])
    found = collect_mask_gradients(
        DifferentiableModule(module, inputs), layers, weights, list(weights), feeds, loss
    )
    assert found.missing == {}
    for layer in layers:
        columns = found.by_layer[layer.name]
        assert columns.dtype == np.float32
        expected = by_masks(module, layer.name, feeds, loss)
        by_channel = columns.reshape(len(feeds), expected.shape[1], -1).sum(axis=2)
        np.testing.assert_allclose(by_channel, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def consumer(layer: str, row_group: int, columns: list[int], units: list[int]) -> Consumer:
    n = len(columns)
    nothing = np.zeros((n, n), np.float32)
    return Consumer(
        layer=layer,
        row_group=row_group,
        columns=np.array(columns),
        units=np.array(units),
        weight=np.zeros((1, n), np.float32),
        halves=(nothing, nothing),
        share=0.5,
        mean=np.zeros(n, np.float32),
    )


def test_a_unit_has_the_sum_of_its_columns_in_all_that_reads_it() -> None:
    rng = np.random.default_rng(0)
    by_layer = {"a": rng.standard_normal((5, 1, 6)), "b": rng.standard_normal((5, 2, 3))}
    gradients = MaskGradients({name: rows.astype(np.float32) for name, rows in by_layer.items()})
    readers = [
        consumer("a", 0, [1, 2, 4, 5], [0, 0, 1, 1]),
        consumer("b", 1, [0, 2], [1, 2]),
    ]
    a, b = by_layer["a"][:, 0], by_layer["b"][:, 1]
    expected = np.stack([a[:, 1] + a[:, 2], a[:, 4] + a[:, 5] + b[:, 0], b[:, 2]], axis=1)
    np.testing.assert_allclose(gradients.of_units(readers, 3), expected, rtol=1e-5)


def test_each_removal_is_the_one_that_adds_least_to_the_loss_of_all_that_are_gone() -> None:
    mixing = np.random.default_rng(1).standard_normal((12, 12))
    gradients = np.random.default_rng(0).standard_normal((40, 12)) @ mixing
    fisher = gradients.T @ gradients
    gone: list[int] = []
    for unit in order_by_fisher(gradients):
        losses = {one: fisher[np.ix_([*gone, one], [*gone, one])].sum() for one in set(range(12)) - set(gone)}
        assert losses[int(unit)] == pytest.approx(min(losses.values()))
        gone.append(int(unit))
    assert sorted(gone) == list(range(12))
    assert gone != np.argsort(np.diag(fisher)).tolist()  # the block matters, not its diagonal alone


def test_units_that_make_up_for_each_other_go_one_after_the_other() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((2, 30))
    gradients = np.stack([2.0 * one, 3.0 * other, 1.5 * other, -2.0 * one], axis=1)
    assert order_by_fisher(gradients).tolist()[:3] == [2, 0, 3]


def test_equal_units_go_in_their_order() -> None:
    assert order_by_fisher(np.zeros((4, 3))).tolist() == [0, 1, 2]


def group(*readers: str) -> ChannelGroup:
    members = [Member("writer", Role.WRITES, ((0,), (1,)))]
    members += [Member(name, Role.READS, ((0,), (1,))) for name in readers]
    return ChannelGroup("group", 2, GroupKind.CHANNELS, tuple(members))


def test_a_group_is_known_if_all_that_reads_it_is() -> None:
    gradients = MaskGradients({"a": np.zeros((1, 1, 2), np.float32)}, {"b": "because"})
    assert gradients.why_none(group("a")) is None
    assert gradients.why_none(group("a", "b")) == "because"
    assert gradients.why_none(group("c", "b"))


def test_a_layer_that_cannot_be_matched_is_missing_and_the_others_are_not() -> None:
    module, layers, weights, feeds = mlp_case()
    lstm = Layer("lstm", "LSTM", (1, 8, 5), 1)
    weights = {**weights, "second": weights["second"] + 1, "lstm": np.zeros((1, 8, 5), np.float32)}
    module = DifferentiableModule(module, ("x",))
    found = collect_mask_gradients(module, [*layers, lstm], weights, list(weights), feeds, SCORES)
    assert found.by_layer.keys() == {"head"}
    assert "no parameter" in str(found.why_none(group("head", "second")))
    assert found.why_none(group("lstm")) == "a recurrence reads it"


def test_a_module_that_fails_is_not_passed_over() -> None:
    """Orders by something else would be kept as if they were Fisher's."""
    module, layers, weights, feeds = mlp_case()
    with pytest.raises(ModelError, match="input 'y'"):
        collect_mask_gradients(
            DifferentiableModule(module, ("y",)), layers, weights, list(weights), feeds, SCORES
        )


def test_gradients_that_are_not_finite_are_none() -> None:
    module, layers, weights, feeds = mlp_case()
    feeds[1]["x"][:] = np.nan
    found = collect_mask_gradients(
        DifferentiableModule(module, ("x",)), layers, weights, list(weights), feeds, SCORES
    )
    assert found.missing["head"] == "gradients that are not finite"
    assert not found.by_layer


def test_a_weight_that_the_module_normalises_has_no_gradient_by_its_masks() -> None:
    module = seeded(Normalised)
    weights = {"second": transposed(module.second), "head": module.head.weight.detach().numpy()}
    layers = [Layer("second", "MatMul", (8, 8), 1), Layer("head", "Gemm", (4, 8), 0)]
    found = collect_mask_gradients(
        DifferentiableModule(module, ["x"]), layers, weights, list(weights), draw({"x": (1, 6)}), SCORES
    )
    assert list(found.by_layer) == ["head"]
    assert "normalised" in found.missing["second"]
