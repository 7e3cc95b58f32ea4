from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from autoq.core.errors import ModelError
from autoq.graph.onnx_spans import SMALL_BYTES, find_spans, skeleton_of
from autoq.testing.models import TINY_MODELS, residual_cnn


@pytest.mark.parametrize("build", TINY_MODELS.values(), ids=TINY_MODELS)
def test_spans_are_the_initializers_that_onnx_itself_finds(build: Callable[[], onnx.ModelProto]) -> None:
    model = build()
    content = memoryview(model.SerializeToString())
    found = {
        span.name: (span.data_type, span.shape, span.of(content).tobytes()) for span in find_spans(content)
    }
    assert found == {
        one.name: (one.data_type, tuple(one.dims), one.raw_data)
        for one in model.graph.initializer
        if len(one.raw_data) >= SMALL_BYTES
    }


def test_skeleton_and_spans_are_the_whole_file() -> None:
    content = memoryview(residual_cnn().SerializeToString())
    spans = find_spans(content)
    assert spans == sorted(spans, key=lambda span: span.offset)
    skeleton, restored, at, taken = skeleton_of(content, spans).tobytes(), b"", 0, 0
    for span in spans:
        restored += skeleton[taken : taken + span.offset - at] + span.of(content).tobytes()
        taken += span.offset - at
        at = span.offset + span.size
    assert restored + skeleton[taken:] == content


@pytest.mark.parametrize("dtype", [onnx.TensorProto.INT4, onnx.TensorProto.UINT4, onnx.TensorProto.FLOAT16])
def test_narrow_and_half_tensors_are_found_with_their_type(dtype: int) -> None:
    tensor = onnx.helper.make_tensor("w", dtype, [64, 33], np.ones(64 * 33), raw=False)
    tensor = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), "w")
    model = residual_cnn()
    model.graph.initializer.append(tensor)
    (span,) = [s for s in find_spans(memoryview(model.SerializeToString())) if s.name == "w"]
    assert (span.data_type, span.shape, span.size) == (dtype, (64, 33), len(tensor.raw_data))


def test_floats_that_are_not_raw_stay_where_they_are() -> None:
    model = onnx.ModelProto()
    model.graph.initializer.append(onnx.helper.make_tensor("w", 1, [1000], np.ones(1000), raw=False))
    assert find_spans(memoryview(model.SerializeToString())) == []


def test_a_model_with_external_data_is_refused() -> None:
    built = residual_cnn()
    onnx.external_data_helper.set_external_data(built.graph.initializer[0], "weights.bin")
    with pytest.raises(ModelError, match="file of their own"):
        find_spans(memoryview(built.SerializeToString()))


@pytest.mark.parametrize("content", [b"\x07", b"\x3a\xff", b"\xff" * 20, b"\x3a\x80\x80\x80\x80\x80\x80\x01"])
def test_what_is_not_protobuf_is_refused(content: bytes) -> None:
    with pytest.raises(ModelError, match="not an ONNX model"):
        find_spans(memoryview(content))


def test_no_cut_or_flip_does_more_than_give_other_spans() -> None:
    content = residual_cnn().SerializeToString()
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(content[: rng.integers(1, len(content))])
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        try:
            spans = find_spans(memoryview(bytes(damaged)))
        except ModelError:
            continue
        assert all(span.offset + span.size <= len(damaged) for span in spans)
