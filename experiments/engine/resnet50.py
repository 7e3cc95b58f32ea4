"""A ResNet-50 with random weights: the size and shape that assembling is timed on."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IMAGE = "image"
N_CLASSES = 1000
SIDE = 224  # pixels

_STAGES = ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2))  # blocks, inner channels, stride of the first
_EXPANSION = 4
_OPSET, _IR_VERSION = 21, 10
_RESIDUAL_GAIN = 0.3  # of a block's last layer; at 1, activations would double in every block


def build_resnet50(*, seed: int = 0) -> onnx.ModelProto:
    """Build the network of He et al. (2015), strides on the 3x3 layers, batch norms folded into biases.

    Input `image` is float32 (batch, 3, 224, 224), output `logits` (batch, 1000).
    """
    net = _Net(seed)
    x = net.relu(net.conv(IMAGE, "stem", (3, 64), kernel=7, stride=2))
    x = net.node("MaxPool", "maxpool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    n_channels = 64
    for stage, (n_blocks, inner, stride) in enumerate(_STAGES, start=1):
        for block in range(n_blocks):
            x = net.bottleneck(
                x, f"layer{stage}.{block}", (n_channels, inner), stride=stride if block == 0 else 1
            )
            n_channels = inner * _EXPANSION
    x = net.node("Flatten", "flatten", net.node("GlobalAveragePool", "pool", x))
    logits = net.gemm(x, "fc", (n_channels, N_CLASSES))
    return net.model(logits)


class _Net:
    """Collects nodes and weights; every method returns the name of the value it makes."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []

    def node(self, op: str, name: str, *inputs: str, **attributes: object) -> str:
        self._nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def relu(self, source: str) -> str:
        return self.node("Relu", f"{source}_relu", source)

    def conv(
        self,
        source: str,
        name: str,
        channels: tuple[int, int],
        *,
        kernel: int,
        stride: int = 1,
        gain: float = 1.0,
    ) -> str:
        """Add a padded convolution with a bias; `channels` is (in, out)."""
        n_in, n_out = channels
        weights = self._weights(name, (n_out, n_in, kernel, kernel), gain)
        window = {"kernel_shape": [kernel] * 2, "pads": [kernel // 2] * 4, "strides": [stride] * 2}
        return self.node("Conv", name, source, *weights, **window)

    def bottleneck(self, source: str, name: str, channels: tuple[int, int], *, stride: int) -> str:
        """Add 1x1, 3x3 and 1x1 layers, with a shortcut beside them; `channels` is (in, inner)."""
        n_in, inner = channels
        n_out = inner * _EXPANSION
        x = self.relu(self.conv(source, f"{name}.conv1", (n_in, inner), kernel=1))
        x = self.relu(self.conv(x, f"{name}.conv2", (inner, inner), kernel=3, stride=stride))
        x = self.conv(x, f"{name}.conv3", (inner, n_out), kernel=1, gain=_RESIDUAL_GAIN)
        if n_in != n_out:
            source = self.conv(source, f"{name}.shortcut", (n_in, n_out), kernel=1, stride=stride, gain=0.5)
        return self.relu(self.node("Add", f"{name}.add", x, source))

    def gemm(self, source: str, name: str, channels: tuple[int, int]) -> str:
        """Add a fully connected layer as torch exports it; `channels` is (in, out)."""
        n_in, n_out = channels
        return self.node("Gemm", name, source, *self._weights(name, (n_out, n_in), 1.0), transB=1)

    def model(self, output: str) -> onnx.ModelProto:
        """Finish; the value named `output` becomes the graph's `logits`."""
        self._nodes[-1].output[:] = ["logits" if name == output else name for name in self._nodes[-1].output]
        image = helper.make_tensor_value_info(IMAGE, TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", N_CLASSES])
        graph = helper.make_graph(self._nodes, "resnet50", [image], [logits], self._initializers)
        imports = [helper.make_opsetid("", _OPSET)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=_IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return model

    def _weights(self, name: str, shape: tuple[int, ...], gain: float) -> list[str]:
        """Add normal weights that keep the variance of what they multiply, times 2 gain², and a bias."""
        scale = np.float32(gain * np.sqrt(2.0 / np.prod(shape[1:])))
        arrays = {
            f"{name}.weight": self._rng.standard_normal(shape, np.float32) * scale,
            f"{name}.bias": self._rng.standard_normal(shape[0], np.float32) * np.float32(0.1),
        }
        self._initializers += [numpy_helper.from_array(array, key) for key, array in arrays.items()]
        return list(arrays)
