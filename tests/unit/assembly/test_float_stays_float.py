"""ONNX Runtime gives 8-bit weights to float layers between integers: what keeps it from doing so."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
import pytest

from autoq.assembly import insert_qdq
from autoq.core.choices import FLOAT, Candidate, Choice, Precision
from autoq.testing.bench import INT8, ModelBench, build_bench, share_changed_by_optimizing
from autoq.testing.models import GraphBuilder, attention, mlp, residual_cnn

BenchOf = Callable[[Callable[[], onnx.ModelProto]], ModelBench]


def chain(*, pool_after: int | None = None, channels: int = 8) -> onnx.ModelProto:
    """Three convolutions, with a MaxPool after one of them."""
    net = GraphBuilder()
    x, n_in = net.input("image", "batch", 3, 12, 12), 3
    for index in range(3):
        x = net.node("Relu", net.conv(x, f"conv{index}", (n_in, channels)))
        n_in = channels
        if index == pool_after:
            x = net.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    return net.build(y=(net.classify(x, channels), ("batch", 10)))


def chain_pooled_before() -> onnx.ModelProto:
    return chain(pool_after=0)


def chain_pooled_after() -> onnx.ModelProto:
    return chain(pool_after=1)


def transposed_chain() -> onnx.ModelProto:
    net = GraphBuilder()
    x = net.node("Relu", net.conv(net.input("image", "batch", 3, 8, 8), "conv0", (3, 8)))
    weight = net.weight("conv1.weight", 8, 8, 2, 2, fan_in=32)
    x = net.node("ConvTranspose", x, weight, net.bias("conv1.bias", 8), strides=[2, 2])
    x = net.node("Relu", net.conv(net.node("Relu", x), "conv2", (8, 8)))
    return net.build(y=(net.classify(x, 8), ("batch", 10)))


FLOAT_IN_THE_MIDDLE = {
    "a convolution": (chain, ("conv0", "conv2"), {}),
    "a convolution before a pool": (chain_pooled_after, ("conv0", "conv2"), {}),
    "a convolution after a float pool": (
        chain_pooled_before,
        ("conv0", "conv2"),
        {"maxpool_2": Precision.FLOAT},
    ),
    "a convolution with float pools": (
        chain_pooled_after,
        ("conv0", "conv2"),
        {"maxpool_4": Precision.FLOAT},
    ),
    "a transposed convolution": (transposed_chain, ("conv0", "conv2"), {}),
    "a Gemm": (mlp, ("fc1", "fc3"), {}),
}


HALF = Choice.of("fp16")


def build_case(case: str, bench_of: BenchOf, floats: Choice = FLOAT) -> tuple[ModelBench, Candidate]:
    build, layers, ops = FLOAT_IN_THE_MIDDLE[case]
    bench = bench_of(build)
    return bench, bench.uniform(floats, but=dict.fromkeys(layers, INT8), but_ops=ops)


@pytest.mark.parametrize("floats", [FLOAT, HALF], ids=str)
@pytest.mark.parametrize("case", FLOAT_IN_THE_MIDDLE)
def test_a_float_layer_between_integer_layers_stays_float(
    case: str, floats: Choice, bench_of: BenchOf
) -> None:
    bench, candidate = build_case(case, bench_of, floats)
    model = bench.build(candidate)
    assert share_changed_by_optimizing(bench, model) < 0.05
    assert float_weights_in_use(bench, bench.optimized(model)) == float_weights_chosen(bench, candidate)


@pytest.mark.parametrize("floats", [FLOAT, HALF], ids=str)
@pytest.mark.parametrize("case", FLOAT_IN_THE_MIDDLE)
def test_without_the_shield_the_runtime_would_quantise_it(
    case: str, floats: Choice, bench_of: BenchOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should this fail with another version of the runtime, the shield may have become unnecessary."""
    monkeypatch.setattr(insert_qdq, "_shield_axis", lambda value: None)
    monkeypatch.setattr(insert_qdq.InsertQdq, "_comes_from_float_pool", lambda self, value: False)
    bench, candidate = build_case(case, bench_of, floats)
    assert share_changed_by_optimizing(bench, bench.build(candidate)) > 0.2


def pools_integers(bench: ModelBench, candidate: Candidate) -> bool:
    """Whether the runtime quantises before the only MaxPool."""
    graph = bench.optimized(bench.build(candidate)).graph
    assert "Clip" not in {node.op_type for node in graph.node}
    by_result = {output: node for node in graph.node for output in node.output}
    (pool,) = (node for node in graph.node if node.op_type in ("MaxPool", "NhwcMaxPool"))
    origin: onnx.NodeProto | None = pool
    while origin is not None and origin.op_type in ("MaxPool", "NhwcMaxPool", "Transpose"):
        origin = by_result.get(origin.input[0])
    assert origin is not None
    return origin.op_type in ("QuantizeLinear", "QLinearConv")


def test_what_a_float_convolution_gives_is_pooled_in_float(
    bench_of: BenchOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the runtime moves a Q up through a MaxPool, it pools integers with a slow kernel."""
    bench = bench_of(chain_pooled_before)
    candidate = bench.uniform(INT8, but={"conv0": FLOAT})
    assert not pools_integers(bench, candidate)
    assert pools_integers(bench, bench.uniform(INT8))
    held = bench.run(bench.build(candidate), optimize=False)
    monkeypatch.setattr(insert_qdq.InsertQdq, "_comes_from_float_pool", lambda self, value: False)
    assert pools_integers(bench, candidate)  # else the Clip has become unnecessary
    for name, array in bench.run(bench.build(candidate), optimize=False).items():
        assert array.tobytes() == held[name].tobytes()


@pytest.mark.parametrize("case", FLOAT_IN_THE_MIDDLE)
def test_the_shield_changes_no_value(case: str, bench_of: BenchOf, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, candidate = build_case(case, bench_of)
    shielded = bench.run(bench.build(candidate), optimize=False)
    monkeypatch.setattr(insert_qdq, "_shield_axis", lambda value: None)
    plain = bench.run(bench.build(candidate), optimize=False)
    for name, array in plain.items():
        assert array.tobytes() == shielded[name].tobytes()


def test_a_tensor_with_one_channel_is_shielded_along_another_axis(bench_of: BenchOf) -> None:
    """A scale repeated once would pass for a scalar."""
    bench = bench_of(partial(chain, channels=1))
    candidate = bench.uniform(FLOAT, but={"conv0": INT8, "conv2": INT8})
    assert share_changed_by_optimizing(bench, bench.build(candidate)) < 0.05


@pytest.mark.parametrize("floats", [FLOAT, HALF], ids=str)
@pytest.mark.parametrize("length", [6, "length"])
def test_float_matmuls_among_integers_stay_float(
    length: int | str, floats: Choice, bench_of: BenchOf
) -> None:
    """With static shapes the runtime turns MatMul and its bias into a Gemm, which it could quantise."""
    bench = bench_of(partial(attention, length=length))
    for layer in bench.layer_names:
        candidate = bench.uniform(INT8, but={layer: floats}, but_ops={"softmax_14": Precision.FLOAT})
        model = bench.build(candidate)
        assert share_changed_by_optimizing(bench, model) < 0.05, layer
        assert bench.fused_ops(model)["MatMulIntegerToFloat"] == 5, layer


def test_each_layer_of_a_residual_network_stays_float_alone(bench_of: BenchOf) -> None:
    bench = bench_of(residual_cnn)
    for layer in bench.layer_names:
        for precision in Precision:
            candidate = bench.uniform(INT8, precision=precision, but={layer: FLOAT})
            model = bench.build(candidate)
            chosen = float_weights_chosen(bench, candidate)
            assert float_weights_in_use(bench, bench.optimized(model)) == chosen, (layer, precision)
            assert share_changed_by_optimizing(bench, model) < 0.05, (layer, precision)


def float_weights_chosen(bench: ModelBench, candidate: Candidate) -> int:
    return sum(not candidate.by_layer[name].format.is_static for name in bench.layer_names)


def float_weights_in_use(bench: ModelBench, graph: onnx.ModelProto) -> int:
    """How many nodes of the optimised graph multiply by float weights."""
    floats = {t.name for t in graph.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    kernels = {"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul"}
    return sum(
        node.op_type in kernels and len(node.input) > 1 and node.input[1] in floats
        for node in graph.graph.node
    )


def test_a_float_layer_stays_float_with_static_shapes(tmp_path_factory: pytest.TempPathFactory) -> None:
    bench = build_bench(residual_cnn(batch=1), tmp_path_factory.mktemp("static"))
    candidate = bench.uniform(INT8, but={"block1.conv1": FLOAT})
    assert share_changed_by_optimizing(bench, bench.build(candidate)) < 0.2


def masked_attention() -> onnx.ModelProto:
    """Scores of later positions are minus infinity, as causal masks write it."""
    net, width, length = GraphBuilder(), 16, 6
    x = net.input("x", "batch", length, width)
    q, k, v = (net.linear(x, name, width, width) for name in ("q", "k", "v"))
    scores = net.node("MatMul", q, net.node("Transpose", k, perm=[0, 2, 1]))
    later = net.constant("later", np.triu(np.ones((length, length)), 1), np.bool_)
    masked = net.node("Where", later, net.constant("never", -np.inf), scores)
    mixed = net.node("MatMul", net.node("Softmax", masked, axis=-1), v)
    return net.build(y=(net.linear(mixed, "out", width, 8), ("batch", length, 8)))


def test_attention_with_masks_of_minus_infinity_is_quantised(bench_of: BenchOf) -> None:
    bench = bench_of(masked_attention)
    plain = bench.run(bench.model.artifact)["y"]
    for precision in Precision:
        found = bench.run(bench.build(bench.uniform(INT8, precision=precision)))["y"]
        assert np.square(found - plain).mean() < 0.05 * np.square(plain).mean(), precision
