from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from autoq.core.artifacts import ModelArtifact
from autoq.core.data import Feed
from autoq.core.errors import ModelError
from autoq.graph.float_model import FloatModel, build_float_model, reload_float_model, serialize
from autoq.targets.onnxruntime_cpu import OnnxRuntimeTarget
from autoq.testing.models import TINY_MODELS, example_feed, mlp, residual_cnn

NAMES = ["residual_cnn", "attention", "token_classifier", "grouped_cnn"]
TINY_LIMIT = 1000


def float_model(name: str = "residual_cnn") -> FloatModel:
    return build_float_model(ir.from_proto(TINY_MODELS[name]()))


def on_disk(model: ir.Model, folder: Path | None = None) -> ModelArtifact:
    artifact = serialize(model, folder, limit_bytes=TINY_LIMIT)
    assert artifact.content is None
    return artifact


def run(artifact: ModelArtifact, feed: Feed, *, optimize: bool = True) -> dict[str, bytes]:
    session = OnnxRuntimeTarget().open(artifact, optimize=optimize)
    return {name: array.tobytes() for name, array in session.run(feed).items()}


def external_tensors(artifact: ModelArtifact) -> dict[str, dict[str, str]]:
    assert artifact.path is not None
    proto = onnx.load(artifact.path, load_external_data=False)
    return {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in proto.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
    }


@pytest.fixture
def own_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary directory of this test alone."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    gc.collect()


@pytest.mark.parametrize("name", NAMES)
def test_a_model_on_disk_computes_what_the_one_in_memory_does(name: str, tmp_path: Path) -> None:
    model, feed = float_model(name), example_feed(TINY_MODELS[name]())
    for optimize in (True, False):
        expected = run(serialize(model.graph), feed, optimize=optimize)
        assert run(on_disk(model.graph, tmp_path), feed, optimize=optimize) == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_reloaded_model_gives_the_bytes_that_the_original_gives(name: str, tmp_path: Path) -> None:
    model = float_model(name)
    on_disk(model.graph).save(tmp_path / "kept.onnx")
    again = reload_float_model(tmp_path / "kept.onnx")
    assert serialize(again.clone()).content == model.artifact.content
    assert on_disk(again.clone()).digest == on_disk(model.clone()).digest == again.artifact.digest
    assert again.summary.layers == model.summary.layers


def test_equal_models_give_equal_files_in_any_folder(tmp_path: Path) -> None:
    model = float_model()
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    one, two = (on_disk(model.clone(), folder) for folder in folders)
    contents = [{path.name: path.read_bytes() for path in each.files} for each in (one, two)]
    assert contents[0] == contents[1]
    assert one.digest == two.digest


def test_writing_to_disk_leaves_the_graph_as_it_was(tmp_path: Path) -> None:
    model = float_model()
    on_disk(model.graph, tmp_path)
    assert serialize(model.graph).content == model.artifact.content


def test_only_large_tensors_go_out_and_start_where_they_can_be_mapped(tmp_path: Path) -> None:
    model = float_model()
    large = np.ones((600, 600), np.float32)  # more than a MiB
    for index in range(2):
        value = ir.Value(name=f"large{index}", const_value=ir.Tensor(large, name=f"large{index}"))
        model.graph.graph.initializers.add(value)
    artifact = on_disk(model.graph, tmp_path)
    tensors = external_tensors(artifact)
    sizes = {name: value.const_value.nbytes for name, value in model.graph.graph.initializers.items()}  # type: ignore[union-attr]
    assert set(tensors) == {name for name, size in sizes.items() if size > 1024}
    assert 0 < len(tensors) < len(sizes)
    for name, entry in tensors.items():
        assert int(entry["length"]) == sizes[name]
        assert int(entry["offset"]) % (65536 if sizes[name] > 2**20 else 4096) == 0


def test_every_tensor_is_found_at_its_offset(tmp_path: Path) -> None:
    model = float_model("attention")
    artifact = on_disk(model.graph, tmp_path)
    data = artifact.external[0].read_bytes()
    for name, entry in external_tensors(artifact).items():
        tensor = model.graph.graph.initializers[name].const_value
        assert tensor is not None
        start = int(entry["offset"])
        assert data[start : start + tensor.nbytes] == tensor.tobytes()


def test_int4_weights_run_from_disk(tmp_path: Path) -> None:
    packed = np.random.default_rng(0).integers(0, 256, 64 * 64 // 2, np.uint8)
    weight = helper.make_tensor("w", TensorProto.INT4, (64, 64), packed.tobytes(), raw=True)
    scale = numpy_helper.from_array(np.float32(0.5), "scale")
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale"], ["float_w"]),
        helper.make_node("MatMul", ["x", "float_w"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 64]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight, scale])
    opset = [helper.make_opsetid("", 21)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=10))
    artifact = on_disk(model, tmp_path)
    assert set(external_tensors(artifact)) == {"w"}
    feed = {"x": np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32)}
    assert run(artifact, feed) == run(serialize(model), feed)


def test_weights_of_a_branch_go_out_as_well(tmp_path: Path) -> None:
    branches = {}
    for index, name in enumerate(("then_branch", "else_branch")):
        weight = numpy_helper.from_array(np.full((32, 32), index + 1, np.float32), f"w_{name}")
        out = helper.make_tensor_value_info(f"y_{name}", TensorProto.FLOAT, [32, 32])
        node = helper.make_node("Identity", [f"w_{name}"], [f"y_{name}"])
        branches[name] = helper.make_graph([node], name, [], [out], [weight])
    choose = helper.make_tensor_value_info("choose", TensorProto.BOOL, [])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [32, 32])
    graph = helper.make_graph(
        [helper.make_node("If", ["choose"], ["y"], **branches)], "g", [choose], [result]
    )
    opset = [helper.make_opsetid("", 21)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=10))
    artifact = on_disk(model, tmp_path)
    assert artifact.external[0].stat().st_size >= 2 * 32 * 32 * 4
    for choice in (True, False):
        feed: Feed = {"choose": np.array(choice)}
        assert run(artifact, feed) == run(serialize(model), feed)


def test_temporary_files_live_as_long_as_the_artifact(own_tmp: Path) -> None:
    artifact = on_disk(float_model().graph)
    (folder,) = own_tmp.iterdir()
    assert set(artifact.files) <= set(folder.iterdir())
    run(artifact, example_feed(residual_cnn()))
    del artifact
    gc.collect()
    assert list(own_tmp.iterdir()) == []


def test_a_folder_that_was_given_stays(tmp_path: Path) -> None:
    artifact = on_disk(float_model().graph, tmp_path)
    names = {path.name for path in artifact.files}
    del artifact
    gc.collect()
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_disk_that_refuses_leaves_no_temporary_folder(own_tmp: Path) -> None:
    done = subprocess.run([sys.executable, __file__, str(own_tmp), "full"], timeout=60)
    assert done.returncode == 0
    assert list(own_tmp.iterdir()) == []


def test_what_a_killed_process_left_behind_goes_and_what_a_live_one_holds_stays(own_tmp: Path) -> None:
    command = [sys.executable, __file__, str(own_tmp), "hold"]
    killed, alive = (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)
    )
    folders = []
    for process in (killed, alive):
        assert process.stdout is not None
        folders.append(Path(process.stdout.readline().decode().strip()))
    for folder in folders:
        os.utime(folder, (0, 0))
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    artifact = on_disk(float_model().graph)
    assert not folders[0].exists()
    assert folders[1].exists()
    alive.communicate(b"\n")
    assert not folders[1].exists()
    assert all(path.exists() for path in artifact.files)


def test_models_that_share_a_folder_keep_their_weights_apart(tmp_path: Path) -> None:
    model, other = float_model("residual_cnn"), float_model("grouped_cnn")
    for name, each in (("one", model), ("two", other)):
        on_disk(each.graph).save(tmp_path / f"{name}.onnx")
    assert serialize(reload_float_model(tmp_path / "one.onnx").graph).content == model.artifact.content
    assert serialize(reload_float_model(tmp_path / "two.onnx").graph).content == other.artifact.content


def test_a_reloaded_model_stays_usable_when_its_files_go(tmp_path: Path) -> None:
    model = float_model()
    on_disk(model.graph).save(tmp_path / "kept.onnx")
    again = reload_float_model(tmp_path / "kept.onnx")
    shutil.rmtree(tmp_path)
    assert serialize(again.graph).content == model.artifact.content


def test_a_reloaded_model_whose_data_are_damaged_has_another_digest(tmp_path: Path) -> None:
    artifact = on_disk(float_model().graph)
    artifact.save(tmp_path / "kept.onnx")
    data = tmp_path / artifact.external[0].name
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(content)
    assert reload_float_model(tmp_path / "kept.onnx").summary.digest != artifact.digest


def test_a_reloaded_model_whose_data_are_gone_is_refused(tmp_path: Path) -> None:
    artifact = on_disk(float_model().graph)
    artifact.save(tmp_path / "kept.onnx")
    (tmp_path / artifact.external[0].name).unlink()
    with pytest.raises(ModelError, match=r"external data file .* is missing"):
        reload_float_model(tmp_path / "kept.onnx")


def hold_a_model() -> None:
    """Write a model to disk, say where, and wait to be told to end."""
    artifact = on_disk(build_float_model(ir.from_proto(mlp())).graph)
    assert artifact.path is not None
    print(artifact.path.parent, flush=True)
    sys.stdin.readline()


def write_to_a_full_disk() -> None:
    """Write a model where no file may become longer than a few bytes."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    with pytest.raises(OSError, match="File too large"):
        on_disk(build_float_model(ir.from_proto(mlp())).graph)


if __name__ == "__main__":  # processes of tests above
    tempfile.tempdir = sys.argv[1]
    {"hold": hold_a_model, "full": write_to_a_full_disk}[sys.argv[2]]()
