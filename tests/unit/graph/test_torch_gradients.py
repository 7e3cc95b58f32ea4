from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoq.core.data import Feed
from autoq.core.errors import ModelError
from autoq.graph.torch_gradients import DifferentiableModule, OutputLoss, torch_left_as_found

SCORES = OutputLoss(0, 1, is_class_scores=True)
OTHERWISE = OutputLoss(0, 1, is_class_scores=False)
N_DRAWS = 800


class Function(nn.Module):
    """A linear layer, and what is done with it."""

    def __init__(self, use: Callable[[nn.Linear, Tensor], object]) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Linear(3, 4)
        self.use = use

    def forward(self, x: Tensor) -> object:
        return self.use(self.layer, x)


def feeds(n_examples: int) -> list[Feed]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, 3)).astype(np.float32)} for _ in range(n_examples)]


def products(module: nn.Module, loss: OutputLoss, examples: list[Feed]) -> list[dict[str, np.ndarray]]:
    return list(DifferentiableModule(module, ("x",)).products(["layer.weight"], examples, loss))


def test_labels_are_drawn_from_the_softmax_of_the_model_and_gradients_are_the_true_fisher_information() -> (
    None
):
    """E over labels of (w ∂L/∂w)² with ∂L/∂logits = p - e_y: for one input, by the sum over all labels."""
    module, example = Function(lambda layer, x: layer(x)), feeds(1)[0]
    squares = np.mean(
        [one["layer.weight"] ** 2 for one in products(module, SCORES, [example] * N_DRAWS)], axis=0
    )
    weight, x = module.layer.weight.detach().numpy(), example["x"][0]
    p = module(torch.tensor(example["x"])).softmax(-1).detach().numpy()[0]
    expected = sum(p[y] * np.square(weight * np.outer(p - np.eye(4)[y], x)) for y in range(4))
    np.testing.assert_allclose(squares, expected, rtol=0.2)


def test_a_projection_has_the_gauss_newton_diagonal_for_its_expected_square() -> None:
    """Of y = Wx, Σ_k (∂y_k / ∂w_ij)² = x_j²."""
    module, example = Function(lambda layer, x: layer(x)), feeds(1)[0]
    found = products(module, OTHERWISE, [example] * N_DRAWS)
    squares = np.mean([one["layer.weight"] ** 2 for one in found], axis=0)
    weight = module.layer.weight.detach().numpy()
    np.testing.assert_allclose(squares, np.square(weight * example["x"]), rtol=0.2)


def test_over_positions_squares_have_the_mean_of_what_each_gives() -> None:
    repeated = Function(lambda layer, x: layer(x).repeat(50, 1)[None])
    outputs = repeated(torch.tensor(feeds(1)[0]["x"]))
    losses = [SCORES.of(outputs, index).item() for index in range(20)]
    entropy = torch.distributions.Categorical(logits=outputs[0, 0].detach()).entropy()
    assert np.mean(losses) == pytest.approx(float(entropy) * math.sqrt(50), rel=0.1)


def test_equal_inputs_give_equal_bytes_and_each_example_a_draw_of_its_own() -> None:
    module = Function(lambda layer, x: layer(x))
    first, again = (products(module, OTHERWISE, feeds(2)) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one["layer.weight"], other["layer.weight"])
    twice = products(module, OTHERWISE, [feeds(1)[0]] * 2)
    assert not np.array_equal(twice[0]["layer.weight"], twice[1]["layer.weight"])


@pytest.mark.parametrize("pack", [lambda y: (y * 0, {"b": y}), lambda y: {"a": y * 0, "z": [y]}])
def test_the_output_is_found_by_its_position_among_the_flattened(pack: Callable[[Tensor], object]) -> None:
    plain = products(Function(lambda layer, x: layer(x)), OTHERWISE, feeds(2))
    packed = Function(lambda layer, x: pack(layer(x)))
    found = products(packed, OutputLoss(1, 2, is_class_scores=False), feeds(2))
    np.testing.assert_array_equal(found[1]["layer.weight"], plain[1]["layer.weight"])
    with pytest.raises(ModelError, match="the module gives 2 tensors, the model 1 outputs"):
        products(packed, OTHERWISE, feeds(1))


def test_what_is_read_twice_or_has_no_gradient_is_left_out() -> None:
    def under_no_grad(layer: nn.Linear, x: Tensor) -> Tensor:
        with torch.no_grad():
            frozen = layer(x)
        return frozen + layer.bias.requires_grad_()

    for use in (lambda layer, x: layer(layer(x)[:, :3]), under_no_grad):
        assert products(Function(use), OTHERWISE, feeds(2)) == [{}, {}]


def fail(layer: nn.Linear, x: Tensor) -> Tensor:
    raise ValueError("not\ntoday")


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        (fail, "the module cannot be differentiated: ValueError: not today"),
        (lambda layer, x: layer(x).argmax(-1), "the output has no gradient"),
    ],
)
def test_a_module_without_gradients_says_why(
    use: Callable[[nn.Linear, Tensor], object], expected: str
) -> None:
    with pytest.raises(ModelError, match=expected):
        products(Function(use), OTHERWISE, feeds(1))


def test_an_input_that_the_model_does_not_have_is_named() -> None:
    module = DifferentiableModule(Function(lambda layer, x: layer(x)), ("x", "extra"))
    with pytest.raises(ModelError, match="does not read the input 'extra'"):
        list(module.products(["layer.weight"], feeds(1), OTHERWISE))


def test_random_numbers_modes_and_threads_of_torch_are_left_as_found(
    capsys: pytest.CaptureFixture[str],
) -> None:
    state, n_threads = torch.random.get_rng_state(), torch.get_num_threads()
    with torch.no_grad():
        with torch_left_as_found():
            torch.manual_seed(3)
            print(torch.rand(2), "said by the user's code")
            assert torch.is_grad_enabled()
            assert torch.get_num_threads() == 1
        assert not torch.is_grad_enabled()
    with torch.inference_mode(), torch_left_as_found():
        assert len(products(Function(lambda layer, x: layer(x)), OTHERWISE, feeds(1))[0]) == 1
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == n_threads
    assert capsys.readouterr().out == ""


def test_half_precision_is_run_in_float32() -> None:
    whole, half = (Function(lambda layer, x: layer(x)) for _ in range(2))
    half.half()
    (found,), (expected,) = (products(one, OTHERWISE, feeds(1)) for one in (half, whole))
    assert found["layer.weight"].dtype == np.float32
    np.testing.assert_allclose(found["layer.weight"], expected["layer.weight"], rtol=1e-2, atol=1e-3)
