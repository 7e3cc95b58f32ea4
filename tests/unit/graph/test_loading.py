from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, numpy_helper

from autoq.core.errors import ModelError
from autoq.graph.float_model import load_float_model, reload_float_model
from autoq.graph.loading import load_onnx, map_onnx
from autoq.targets.onnxruntime_cpu import OnnxRuntimeTarget
from autoq.testing.models import TINY_MODELS, example_feed, mlp, residual_cnn


def refusal(path: Path) -> str:
    """The one line a user reads."""
    with pytest.raises(ModelError) as caught:
        load_float_model(path)
    line = str(caught.value)
    assert str(path) in line
    assert "\n" not in line
    return line


def save_external(folder: Path, location: str, **entries: int | str) -> tuple[Path, bytes]:
    """Write an MLP whose first weight points out of the file; return what should be there."""
    proto = mlp()
    tensor = proto.graph.initializer[0]
    raw = numpy_helper.to_array(tensor).tobytes()
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path, raw


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "nowhere.onnx")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["model.onnx", "model.json", "model.txt", "model.onnxtxt", "model.pt"])
@pytest.mark.parametrize("content", ["hello world", '{"graph": 1}', ""])
def test_a_file_that_is_not_onnx_is_refused_whatever_its_name(
    name: str, content: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert "ONNX model" in refusal(path)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = residual_cnn().SerializeToString()
    path = tmp_path / "model.onnx"
    for length in range(1, len(whole), len(whole) // 20):
        path.write_bytes(whole[:length])
        refusal(path)


def test_a_graph_that_is_not_valid_is_refused_with_the_reason(tmp_path: Path) -> None:
    proto = mlp()
    proto.graph.node[2].input[0] = "nobody_writes_this"
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    assert "nobody_writes_this" in refusal(path)


@pytest.mark.parametrize("n_bytes", [0, 3, 40])
def test_a_weight_that_lacks_data_is_refused_by_name(tmp_path: Path, n_bytes: int) -> None:
    proto = mlp()
    weight = next(one for one in proto.graph.initializer if one.name == "fc1.weight")
    weight.raw_data = weight.raw_data[:n_bytes]
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    assert "tensor 'fc1.weight' does not have the data of its shape" in refusal(path)


def test_a_model_without_layers_is_refused_with_its_path(tmp_path: Path) -> None:
    proto = mlp()
    del proto.graph.node[1:]
    proto.graph.node[0].CopyFrom(onnx.helper.make_node("Relu", ["features"], ["logits"]))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 20
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    assert "no layer that can be compressed" in refusal(path)


def test_external_data_are_read_and_what_is_written_stands_alone(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    onnx.save(
        residual_cnn(), source / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0
    )
    model = load_float_model(source / "m.onnx")
    shutil.rmtree(source)
    session = OnnxRuntimeTarget().open(model.artifact)
    assert session.run(example_feed(residual_cnn()))["logits"].shape == (4, 10)
    assert model.artifact.size_bytes > 4 * sum(layer.n_params for layer in model.summary.layers)


def test_external_data_give_the_model_that_inline_data_give(tmp_path: Path) -> None:
    onnx.save(mlp(), tmp_path / "inline.onnx")
    onnx.save(mlp(), tmp_path / "out.onnx", save_as_external_data=True, location="d", size_threshold=0)
    assert (
        load_float_model(tmp_path / "out.onnx").summary == load_float_model(tmp_path / "inline.onnx").summary
    )


def test_external_data_of_a_constant_node_are_read_too(tmp_path: Path) -> None:
    proto = mlp()
    bias = next(one for one in proto.graph.initializer if one.name == "fc1.bias")
    proto.graph.initializer.remove(bias)
    (tmp_path / "bias.bin").write_bytes(numpy_helper.to_array(bias).tobytes())
    bias.ClearField("raw_data")
    bias.data_location = TensorProto.EXTERNAL
    bias.external_data.add(key="location", value="bias.bin")
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["fc1.bias"], value=bias))
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    model = load_float_model(path)
    (tmp_path / "bias.bin").unlink()
    assert model.summary.layers[0].has_bias
    OnnxRuntimeTarget().open(model.artifact)


def test_missing_external_data_are_refused_by_name(tmp_path: Path) -> None:
    path, _ = save_external(tmp_path, "weights.bin")
    assert "external data file 'weights.bin' of tensor 'fc1.weight' is missing" in refusal(path)


def test_truncated_external_data_are_refused(tmp_path: Path) -> None:
    path, raw = save_external(tmp_path, "weights.bin")
    (tmp_path / "weights.bin").write_bytes(raw[:-1])
    assert "'weights.bin' is truncated" in refusal(path)


@pytest.mark.parametrize("location", ["../secret.bin", "sub/../../secret.bin", "absolute", "link.bin"])
def test_external_data_outside_the_folder_are_refused(location: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    location = str(secret) if location == "absolute" else location
    path, raw = save_external(tmp_path / "inside", location)
    secret.write_bytes(raw)
    (tmp_path / "inside" / "link.bin").symlink_to(secret)
    assert "outside the model's folder" in refusal(path)


def test_external_data_in_a_folder_below_are_fine(tmp_path: Path) -> None:
    path, raw = save_external(tmp_path, "data/weights.bin")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "weights.bin").write_bytes(raw)
    assert load_float_model(path).summary.layers[0].name == "fc1"


@pytest.mark.parametrize("entries", [{"offset": -100}, {"length": 4}, {"length": 10**9}, {"offset": "abc"}])
def test_external_data_of_an_impossible_range_are_refused(entries: dict[str, int], tmp_path: Path) -> None:
    path, raw = save_external(tmp_path, "weights.bin", **entries)
    (tmp_path / "weights.bin").write_bytes(raw)
    refusal(path)


@pytest.mark.parametrize("name", ["residual_cnn", "attention", "two_headed"])
def test_a_model_that_autoq_wrote_is_read_back_unchanged(name: str, tmp_path: Path) -> None:
    (tmp_path / "source.onnx").write_bytes(TINY_MODELS[name]().SerializeToString())
    model = load_float_model(tmp_path / "source.onnx")
    model.artifact.save(tmp_path / "kept.onnx")
    again = reload_float_model(tmp_path / "kept.onnx")
    assert again.summary == model.summary
    assert again.artifact.content == model.artifact.content


def test_external_data_with_a_second_hard_link_are_refused_in_one_line(tmp_path: Path) -> None:
    path, raw = save_external(tmp_path, "weights.bin")
    (tmp_path / "weights.bin").write_bytes(raw)
    (tmp_path / "again.bin").hardlink_to(tmp_path / "weights.bin")
    assert "cannot read external data 'weights.bin'" in refusal(path)


def test_what_is_loaded_is_a_copy_and_what_is_mapped_is_not(tmp_path: Path) -> None:
    path, raw = save_external(tmp_path, "weights.bin")
    data = tmp_path / "weights.bin"
    data.write_bytes(raw)
    loaded = load_onnx(path)
    mapped, files = map_onnx(path)
    with data.open("r+b") as file:
        file.write(bytes(len(raw)))
    assert files == (data,)
    tensors = [model.graph.initializers["fc1.weight"].const_value for model in (loaded, mapped)]
    assert [tensor.tobytes() for tensor in tensors if tensor is not None] == [raw, bytes(len(raw))]


def test_a_model_without_external_data_maps_no_files(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(mlp().SerializeToString())
    assert map_onnx(tmp_path / "model.onnx")[1] == ()
