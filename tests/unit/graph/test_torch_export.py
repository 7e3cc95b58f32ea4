from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from autoq.core.errors import ModelError, UserError
from autoq.graph.float_model import build_float_model
from autoq.graph.torch_export import ExampleInput, export_torch

SOURCE = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU()
        )
        self.head = torch.nn.ModuleDict({"fc": torch.nn.Linear(8, 5)})

    def forward(self, image, extra):
        return self.head["fc"](self.stem(image).mean((2, 3)) + extra)

class Fixed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.token = torch.nn.Parameter(torch.ones(1, 1, 8))

    def forward(self, image):
        return torch.cat([self.token.expand(len(image), -1, -1), image], 1)

def build():
    torch.manual_seed(0)
    return Net()

def build_nothing():
    return 3

def build_error():
    raise ValueError("no weights today")
"""
EXAMPLE = {"image": ExampleInput(("batch", 3, 8, 8)), "extra": ExampleInput(("batch", 8), low=-1.0)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(SOURCE)
    return tmp_path


def test_an_exported_module_computes_what_torch_computes_at_any_batch_size(source: Path) -> None:
    namespace: dict[str, object] = {}
    exec(SOURCE, namespace)
    module = namespace["build"]()  # type: ignore[operator]
    generator = torch.Generator().manual_seed(5)
    state = {
        name: torch.randn(value.shape, generator=generator).abs() + 0.1
        if value.is_floating_point()
        else value
        for name, value in module.state_dict().items()
    }
    torch.save(state, source / "weights.pt")
    module.load_state_dict(state)

    model = build_float_model(export_torch("net.py:build", source, EXAMPLE, source / "weights.pt"))
    assert [layer.name for layer in model.summary.layers] == ["stem.0", "head.fc"]
    assert [spec.name for spec in model.summary.inputs] == ["image", "extra"]
    assert [isinstance(spec.shape[0], str) for spec in model.summary.inputs] == [True, True]
    assert [node.op_type for node in model.graph.graph][:2] == ["Conv", "Relu"]
    content = model.artifact.content
    assert content is not None
    assert str(source).encode() not in content
    assert b"net.py" not in content

    session = ort.InferenceSession(content)
    for n_examples in (1, 5):
        feed = {"image": torch.randn(n_examples, 3, 8, 8), "extra": torch.randn(n_examples, 8)}
        with torch.no_grad():
            expected = module.eval()(**feed).numpy()
        (found,) = session.run(None, {name: value.numpy() for name, value in feed.items()})
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("net.py:absent", "absent"),
        ("gone.py:build", r"gone\.py"),
        ("net.py", r"net\.py"),
        ("net.py:SOURCE_OF_NOTHING", "SOURCE_OF_NOTHING"),
        ("net.py:build_nothing", r"net\.py:build_nothing: expected a torch\.nn\.Module, got int"),
        ("net.py:build_error", r"net\.py:build_error: the factory raised ValueError: no weights today"),
        ("net.py:__name__", r"net\.py:__name__: expected a callable"),
    ],
)
def test_a_factory_that_gives_no_module_is_refused(reference: str, message: str, source: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        export_torch(reference, source, EXAMPLE)
    assert "\n" not in str(caught.value)


def test_an_axis_that_the_module_fixes_is_not_passed_off_as_dynamic(source: Path) -> None:
    reference = f"{source}/net.py:Fixed"
    image = {"image": ExampleInput(("batch", 3, 8))}
    with pytest.raises(ModelError, match=r"axis 0 \(batch\) of input 'image' cannot be dynamic") as caught:
        export_torch(reference, source, image)
    assert "len()" in str(caught.value.hint)
    fixed = export_torch(reference, source, {"image": ExampleInput((4, 3, 8))})
    assert fixed.graph.inputs[0].shape == (4, 3, 8)


def test_a_checkpoint_that_does_not_fit_is_refused(source: Path) -> None:
    path = source / "weights.pt"
    with pytest.raises(ModelError, match="no such checkpoint"):
        export_torch("net.py:build", source, EXAMPLE, path)
    path.write_text("hello")
    with pytest.raises(ModelError, match=r"weights\.pt: not a state dict"):
        export_torch("net.py:build", source, EXAMPLE, path)
    torch.save({"stem.0.weight": torch.ones(2)}, path)
    with pytest.raises(ModelError, match=r"weights\.pt: not a state dict"):
        export_torch("net.py:build", source, EXAMPLE, path)
    torch.save(torch.nn.Linear(2, 2), path)  # a pickled module, which weights_only refuses
    with pytest.raises(ModelError, match="weights_only=True") as caught:
        export_torch("net.py:build", source, EXAMPLE, path)
    assert "\n" not in str(caught.value)


def test_examples_are_drawn_within_their_bounds() -> None:
    rng = np.random.default_rng(0)
    tokens = ExampleInput(("batch", 7), "int64", low=0, high=30).draw(rng)
    assert tokens.shape == (2, 7)
    assert tokens.dtype == np.int64
    assert tokens.min() >= 0
    assert tokens.max() < 30
    image = ExampleInput((1, 3), low=-1.0, high=1.0).draw(rng)
    assert image.dtype == np.float32
    assert np.abs(image).max() <= 1.0
