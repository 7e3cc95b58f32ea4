from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

from autoq.core.artifacts import ModelArtifact
from autoq.core.choices import Choice
from autoq.core.errors import ModelError, UnknownNameError, UserError
from autoq.export.bundle import BundleFormat, unbundle, write_bundle
from autoq.testing.bench import INT8, build_bench
from autoq.testing.models import TINY_MODELS, attention, residual_cnn

FORMATS = list(BundleFormat)
CHOICES = {
    "int8": INT8,
    "4 bits": Choice.of("int8", weight_bits=4),
    "2 bits": Choice.of("int8", weight_bits=2),
    "half zero": Choice.of("int8", weight_bits=4, sparsity=0.5, pattern="2:4"),
    "half": Choice.of("fp16"),
}


def wide_layer(n_rows: int, n_columns: int, dtype: int = onnx.TensorProto.INT4) -> onnx.ModelProto:
    """One product with a matrix of 4-bit noise; rows may end within a byte."""
    values = np.random.default_rng(0).integers(-8, 8, (n_rows, n_columns), np.int8)
    model = residual_cnn()
    model.graph.initializer.append(onnx.helper.make_tensor("wide", dtype, values.shape, values.reshape(-1)))
    model.graph.initializer[-1].CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(model.graph.initializer[-1]), "wide")
    )
    return model


def bundled(content: bytes, folder: Path, bundle_format: BundleFormat) -> Path:
    path = folder / bundle_format.file_name
    write_bundle(ModelArtifact.from_bytes(content), path, bundle_format)
    return path


@pytest.mark.parametrize("bundle_format", FORMATS)
@pytest.mark.parametrize("build", TINY_MODELS.values(), ids=TINY_MODELS)
def test_a_float_model_comes_back_byte_for_byte(
    build: Callable[[], onnx.ModelProto], bundle_format: BundleFormat, tmp_path: Path
) -> None:
    content = build().SerializeToString()
    path, out = bundled(content, tmp_path, bundle_format), tmp_path / "model.onnx"
    assert unbundle(path, out) == len(content)
    assert out.read_bytes() == content
    assert {one.name for one in tmp_path.iterdir()} == {path.name, out.name}


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_a_compressed_model_comes_back_byte_for_byte_from_every_format(
    choice: Choice, tmp_path: Path
) -> None:
    bench = build_bench(residual_cnn(), tmp_path / "bench")
    content = bench.build(bench.uniform(choice)).content
    assert content is not None
    for bundle_format in FORMATS:
        out = tmp_path / f"{bundle_format}.onnx"
        unbundle(bundled(content, tmp_path, bundle_format), out)
        assert out.read_bytes() == content


@pytest.mark.parametrize("bundle_format", FORMATS)
@pytest.mark.parametrize("shape", [(64, 64), (33, 65), (3, 200_001)], ids=str)
def test_4_bit_rows_that_end_within_a_byte_come_back(
    shape: tuple[int, int], bundle_format: BundleFormat, tmp_path: Path
) -> None:
    content = wide_layer(*shape).SerializeToString()
    unbundle(bundled(content, tmp_path, bundle_format), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == content


def test_other_tools_read_the_tensors_as_they_are(tmp_path: Path) -> None:
    model = wide_layer(64, 32)
    content = model.SerializeToString()
    (stem, wide) = (one for one in model.graph.initializer if one.name in ("stem.weight", "wide"))
    tensors = load_file(bundled(content, tmp_path, BundleFormat.SAFETENSORS))
    with h5py.File(bundled(content, tmp_path, BundleFormat.HDF5)) as file:
        for read in (tensors, file):
            np.testing.assert_array_equal(read["stem.weight"], onnx.numpy_helper.to_array(stem))
            np.testing.assert_array_equal(read["wide"], onnx.numpy_helper.to_array(wide).astype(np.int8))


def test_names_that_a_file_cannot_hold_do_not_collide(tmp_path: Path) -> None:
    model = residual_cnn()
    values = np.arange(1000, dtype=np.float32)
    for name in ("a", "a/b", "a.b", "", "autoq_skeleton", "."):
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    content = model.SerializeToString()
    for bundle_format in FORMATS:
        out = tmp_path / f"{bundle_format}.onnx"
        unbundle(bundled(content, tmp_path, bundle_format), out)
        assert out.read_bytes() == content


def test_the_native_format_is_smallest_and_half_zeros_make_it_smaller(tmp_path: Path) -> None:
    bench = build_bench(attention(), tmp_path / "bench")
    sizes = {}
    for name in ("int8", "4 bits", "half zero"):
        content = bench.build(bench.uniform(CHOICES[name])).content
        assert content is not None
        sizes[name] = {one: bundled(content, tmp_path, one).stat().st_size for one in FORMATS}
        assert sizes[name][BundleFormat.NATIVE] == min(sizes[name].values()) < len(content)
    assert sizes["half zero"][BundleFormat.NATIVE] < sizes["4 bits"][BundleFormat.NATIVE]


@pytest.mark.parametrize("bundle_format", FORMATS)
def test_equal_models_make_equal_bundles(bundle_format: BundleFormat, tmp_path: Path) -> None:
    content = residual_cnn().SerializeToString()
    first = bundled(content, tmp_path, bundle_format).read_bytes()
    assert bundled(content, tmp_path, bundle_format).read_bytes() == first


def test_a_model_with_external_data_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(residual_cnn().SerializeToString())
    model = ModelArtifact(path=tmp_path / "model.onnx", external=(tmp_path / "weights.bin",))
    with pytest.raises(ModelError, match=r"keeps weights in weights\.bin"):
        write_bundle(model, tmp_path / "out.autoq", BundleFormat.NATIVE)
    assert [one.name for one in tmp_path.iterdir()] == ["model.onnx"]


def test_a_model_on_the_disk_is_bundled_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(residual_cnn().SerializeToString())
    write_bundle(ModelArtifact(path=path), tmp_path / "model.autoq", BundleFormat.NATIVE)
    unbundle(tmp_path / "model.autoq", tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()


def test_an_unknown_format_is_refused_by_name() -> None:
    with pytest.raises(UnknownNameError, match=r"zip.*native, hdf5, safetensors"):
        BundleFormat.named("zip")


def test_places_that_cannot_be_are_named(tmp_path: Path) -> None:
    path = bundled(residual_cnn().SerializeToString(), tmp_path, BundleFormat.NATIVE)
    for bundle, out, said in [
        (path, path, "already exists"),
        (path, tmp_path / "nowhere" / "out.onnx", "no such folder"),
        (tmp_path / "nothing.autoq", tmp_path / "out.onnx", "no such bundle"),
        (tmp_path, tmp_path / "out.onnx", "no such bundle"),
    ]:
        with pytest.raises(UserError, match=said):
            unbundle(bundle, out)


def test_a_written_file_has_the_rights_that_the_mask_leaves(tmp_path: Path) -> None:
    path = bundled(residual_cnn().SerializeToString(), tmp_path, BundleFormat.NATIVE)
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


_MEASURE = """
import resource, sys
from pathlib import Path
from autoq.export.bundle import unbundle
def peak(): return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
small, large, out = map(Path, sys.argv[1:])
unbundle(small, out / "small.onnx")
before = peak()
unbundle(large, out / "large.onnx")
print(peak() - before)
"""


def test_unbundling_takes_memory_for_a_piece_of_the_model_not_for_all_of_it(tmp_path: Path) -> None:
    model = residual_cnn()
    noise = np.random.default_rng(0).standard_normal(1 << 10).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.tile(noise, 1 << 12), "large"))
    small, large = tmp_path / "small.autoq", tmp_path / "large.autoq"
    for path, content in ((small, wide_layer(1024, 1024)), (large, model)):
        artifact = ModelArtifact.from_bytes(content.SerializeToString())
        write_bundle(artifact, path, BundleFormat.NATIVE)
    ran = subprocess.run(
        [sys.executable, "-c", _MEASURE, small, large, tmp_path], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert int(ran.stdout) < 0.25 * (tmp_path / "large.onnx").stat().st_size
