"""Gradients of a torch module's weights, one example after the other."""

from __future__ import annotations

import importlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from autoq.core.data import Array, Feed
from autoq.core.errors import ModelError
from autoq.core.python_objects import describe_error
from autoq.graph.quiet import quiet

Floats = npt.NDArray[np.float32]

_SEED = 0


@dataclass(frozen=True, slots=True)
class OutputLoss:
    """A loss of one output of a module that needs no labels: its squared gradients are Fisher information.

    With scores of classes it is the cross entropy against labels that are drawn from the scores' own
    softmax, as in the true Fisher information, not the empirical one. Of anything else it is the sum of
    the output, each number times a draw from N(0, 1): the expected square of its gradient is the diagonal
    of the Gauss-Newton matrix. Draws are seeded by the example's position.
    """

    output: int  # position among the module's outputs, flattened
    n_outputs: int  # that there have to be
    is_class_scores: bool

    def of(self, outputs: object, index: int) -> Any:
        """Return the loss of one example, a scalar tensor.

        Raises:
            ModelError: The module gives another number of tensors.
        """
        torch = importlib.import_module("torch")
        leaves, _ = importlib.import_module("torch.utils._pytree").tree_flatten(outputs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if len(tensors) != self.n_outputs:
            raise ModelError(f"the module gives {len(tensors)} tensors, the model {self.n_outputs} outputs")
        found, rng = tensors[self.output].double(), np.random.default_rng([_SEED, index])
        if self.is_class_scores:
            return _cross_entropy(found, rng)
        return (found * torch.from_numpy(rng.standard_normal(tuple(found.shape)))).sum()


def _cross_entropy(scores: Any, rng: np.random.Generator) -> Any:
    """Of (..., classes); over positions it is the sum / √n, so that squares have the mean's expectation."""
    log_p = scores.log_softmax(-1).reshape(-1, scores.shape[-1])
    cumulated = np.cumsum(log_p.detach().exp().numpy(), axis=1)
    drawn = (cumulated < rng.random((len(cumulated), 1)) * cumulated[:, -1:]).sum(axis=1)
    return -log_p[range(len(drawn)), drawn.tolist()].sum() / len(drawn) ** 0.5


@contextmanager
def torch_left_as_found() -> Iterator[None]:
    """Give torch gradients and one thread in the block; its random numbers, modes and threads come back.

    Products that are split over threads sum in another order: equal inputs have to give equal bytes.
    """
    torch = importlib.import_module("torch")
    n_threads = torch.get_num_threads()
    with (
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),
        torch.enable_grad(),
        quiet(),
        redirect_stdout(io.StringIO()),
    ):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(n_threads)


class DifferentiableModule:
    """A module in evaluation mode and float32 that is called as the exporter calls it."""

    def __init__(self, module: Any, inputs: Sequence[str]) -> None:
        """Take a module of one's own: its mode, its precision and what needs gradients are changed.

        Args:
            module: A torch.nn.Module.
            inputs: Names of forward's parameters, in its order.
        """
        self._module, self._inputs = module.eval().float(), inputs
        self._weights = dict(self._module.named_parameters())

    @property
    def parameters(self) -> dict[str, Array]:
        """The values of all parameters by name; one that is shared stands once."""
        return {name: weight.detach().cpu().numpy() for name, weight in self._weights.items()}

    def products(
        self, names: Sequence[str], feeds: Iterable[Feed], loss: OutputLoss
    ) -> Iterator[dict[str, Floats]]:
        """Yield weight ⊙ ∂loss/∂weight for each feed, by the name of the parameter.

        Left out are parameters that no gradient reaches, and those that are read more than once: their
        gradient is a sum over all readers.

        Args:
            names: Parameters that are asked for.
            feeds: One example each.
            loss: What is differentiated.

        Raises:
            ModelError: The module fails, or cannot be differentiated.
        """
        torch = importlib.import_module("torch")
        try:
            weights = {name: self._weights[name].requires_grad_() for name in names}
        except RuntimeError as error:  # they were made where gradients cannot be
            raise ModelError(f"the module cannot be differentiated: {describe_error(error)}") from error
        for index, feed in enumerate(feeds):
            try:
                value = loss.of(self._module(*(self._tensor(feed, name) for name in self._inputs)), index)
                if not value.requires_grad:
                    raise ModelError("the output has no gradient")
                uses = _n_uses(value)
                found = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
            except ModelError:
                raise
            except Exception as error:  # the user's code may raise anything
                raise ModelError(f"the module cannot be differentiated: {describe_error(error)}") from error
            yield {
                name: (weight * gradient).detach().numpy()
                for (name, weight), gradient in zip(weights.items(), found, strict=True)
                if gradient is not None and uses[id(weight)] == 1
            }

    def _tensor(self, feed: Feed, name: str) -> Any:
        if name not in feed:
            raise ModelError(f"the model does not read the input {name!r} of the module")
        tensor = importlib.import_module("torch").tensor(feed[name])
        return tensor.float() if tensor.is_floating_point() else tensor


def _n_uses(value: Any) -> Counter[int]:
    """Count what reads each leaf of a graph, by the id of the leaf."""
    seen, waiting, uses = {value.grad_fn}, [value.grad_fn], Counter[int]()
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if hasattr(node, "variable"):
                uses[id(node.variable)] += 1
            elif node is not None and node not in seen:
                seen.add(node)
                waiting.append(node)
    return uses
