from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from autoq.core.artifacts import ModelArtifact
from autoq.core.choices import Candidate, Choice
from autoq.core.errors import ModelError, UserError
from autoq.export.recipe import (
    RECIPE_FILE,
    TENSORS_FILE,
    Ingredients,
    Recipe,
    apply_recipe,
    build_recipe,
    load_recipe,
    save_recipe,
)
from autoq.graph.float_model import build_float_model, reload_float_model
from autoq.graph.rewriting import RewriteVectors
from autoq.testing.bench import INT8, ModelBench, build_bench
from autoq.testing.models import TINY_MODELS, attention, depthwise_cnn, mlp, residual_cnn

CHOICES = [
    INT8,
    Choice.of("int8", weight_bits=4, granularity="tensor", calibration="percentile99.99", sparsity=0.3),
    Choice.of("int8_s8", weight_bits=2, calibration="entropy"),
    Choice.of("fp32", sparsity=0.5),
    Choice.of("int8", weight_bits=3, rounding="gptq", sparsity=0.5, pruning="sparsegpt", pattern="2:4"),
    Choice.of("int8", weight_bits=4, rounding="gptq", grid="codebook"),
    Choice.of("fp16", sparsity=0.25, pruning="sparsegpt"),
    Choice(),
]
MATMUL_CHOICES = [
    Choice.of("int8_dynamic", weight_bits=6),
    Choice.of("int8_outlier", weight_bits=5),
    Choice.of("int8_outlier", rounding="gptq"),
    Choice.of("int8_outlier", weight_bits=3, rounding="gptq", grid="codebook"),
    Choice.of("int8_weight", granularity="block128", sparsity=0.25),
    Choice.of("int4_weight"),
    Choice.of("int4_weight", rounding="adaround"),
]


def mixed(bench: ModelBench) -> Candidate:
    """Every choice in turn, over the layers that can have it."""
    choices = {}
    for index, layer in enumerate(bench.model.summary.layers):
        options = [*MATMUL_CHOICES, *CHOICES] if layer.is_matmul else CHOICES
        legal = [choice for choice in options if bench.target.judge(layer, choice).legal]
        choices[layer.name] = legal[index % len(legal)]
    return Candidate.of(choices, bench.uniform(INT8).by_op)


def recipe_of(bench: ModelBench, candidate: Candidate) -> tuple[Recipe, ModelArtifact]:
    deployed = bench.build(candidate)
    plan, variants = bench.stitcher.plan(candidate), bench.stitcher.variants(candidate)
    return build_recipe(bench.model, Ingredients(plan, variants, RewriteVectors()), deployed), deployed


@pytest.fixture
def bench(tmp_path: Path) -> ModelBench:
    return build_bench(residual_cnn(), tmp_path / "bench")


@pytest.fixture
def saved(bench: ModelBench, tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    save_recipe(recipe_of(bench, mixed(bench))[0], folder)
    return folder


@pytest.mark.parametrize("build", TINY_MODELS.values(), ids=TINY_MODELS)
def test_a_recipe_rebuilds_the_same_bytes_from_the_float_model_alone(
    build: Callable[[], onnx.ModelProto], tmp_path: Path
) -> None:
    bench = build_bench(build(), tmp_path / "bench")
    for candidate in (mixed(bench), bench.uniform(INT8), Candidate.of({})):
        recipe, deployed = recipe_of(bench, candidate)
        save_recipe(recipe, tmp_path)
        source = build_float_model(ir.from_proto(build()))
        assert apply_recipe(load_recipe(tmp_path / RECIPE_FILE), source).content == deployed.content


@pytest.mark.parametrize("build", [residual_cnn, attention, depthwise_cnn], ids=lambda build: build.__name__)
def test_recipe_to_model_to_recipe_is_identity(build: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    bench = build_bench(build(), tmp_path / "bench")
    first, _ = recipe_of(bench, mixed(bench))
    save_recipe(first, tmp_path)
    files = {name: (tmp_path / name).read_bytes() for name in (RECIPE_FILE, TENSORS_FILE)}

    loaded = load_recipe(tmp_path)
    rebuilt = apply_recipe(loaded, bench.model)
    assert loaded.candidate == first.candidate
    assert dict(loaded.activations) == dict(first.activations)
    assert rebuilt.digest == loaded.model_digest
    save_recipe(loaded, tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in files} == files


def test_a_recipe_works_on_the_float_model_that_autoq_keeps(bench: ModelBench, tmp_path: Path) -> None:
    recipe, deployed = recipe_of(bench, mixed(bench))
    bench.model.artifact.save(tmp_path / "float.onnx")
    assert apply_recipe(recipe, reload_float_model(tmp_path / "float.onnx")).content == deployed.content


def test_the_yaml_can_be_read_by_people(saved: Path) -> None:
    content = yaml.safe_load((saved / RECIPE_FILE).read_text())
    assert content["choices"]["stem"]["format"] == "int8"
    assert content["choices"]["block1.conv1"]["weight_bits"] == 4
    assert set(content["graph"].values()) == {"int8"}


def test_another_float_model_is_refused(saved: Path) -> None:
    for other in (mlp(), residual_cnn(seed=1)):
        with pytest.raises(ModelError, match="belongs to another float model"):
            apply_recipe(load_recipe(saved), build_float_model(ir.from_proto(other)))


def test_a_recipe_that_gives_another_model_is_refused(bench: ModelBench) -> None:
    recipe, _ = recipe_of(bench, mixed(bench))
    other = replace(recipe, model_digest="0" * 32)
    with pytest.raises(ModelError, match="differs from the one the recipe was written for"):
        apply_recipe(other, bench.model)


def test_a_missing_file_is_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such recipe"):
        load_recipe(tmp_path / "nowhere.yaml")
    (saved / TENSORS_FILE).unlink()
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        load_recipe(saved)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("weight_bits: 4", "weight_bits: 5"),
        ("weight_bits: 4", "weight_bits: 0"),
        ("weight_bits: 4", "weight_bits: many"),
        ("sparsity: 0.5", "sparsity: 5.0"),
        ("format: int8_s8", "format: int9"),
        ("format: int8_s8", "format: int4_weight"),
        ("granularity: tensor", "granularity: none"),
        ("version: 2", "version: 3"),
        ("version: 2", "edition: 1"),
        ("choices:", "choices: 3\nothers:"),
        ("graph:", "graph: null\nothers:"),
        ("stem:", "stem: null\n  tree:"),
        ("version: 2", "version: [1"),
    ],
)
def test_an_edited_yaml_is_refused_in_one_line(old: str, new: str, saved: Path, bench: ModelBench) -> None:
    path = saved / RECIPE_FILE
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        apply_recipe(load_recipe(saved), bench.model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "hello", "[1, 2]", "3", "a: {b", "\x00\x01"])
def test_a_file_that_is_no_recipe_is_refused_in_one_line(content: str, saved: Path) -> None:
    (saved / RECIPE_FILE).write_text(content)
    with pytest.raises(UserError, match=r"recipe\.yaml") as caught:
        load_recipe(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello", bytes(100)])
def test_tensors_that_cannot_be_read_are_refused(content: bytes, saved: Path) -> None:
    (saved / TENSORS_FILE).write_bytes(content)
    with pytest.raises(UserError, match="not a readable recipe"):
        load_recipe(saved)


def edited(saved: Path, **changes: np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None) -> Path:
    tensors = load_file(saved / TENSORS_FILE)
    for key, value in changes.items():
        assert key in tensors
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value
    save_file(tensors, saved / TENSORS_FILE)
    return saved


@pytest.mark.parametrize(
    "changes",
    [
        {"scale/image": np.array([0.5], np.float32)},
        {"scale/image": np.array([np.nan], np.float32)},
        {"scale/image": np.array([0.0], np.float32)},
        {"scale/image": np.array([-1.0], np.float32)},
        {"scale/image": np.zeros(0, np.float32)},
        {"scale/image": None},
        {"zero_point/image": None},
        {"zero_point/image": np.array([3], np.int8)},
        {"zero_point/image": np.array([250], np.uint8)},
        {"weight/stem": np.ones(8, np.float32)},
        {"weight/stem": np.ones(3, np.float32)},
        {"weight/stem": None},
    ],
    ids=str,
)
def test_edited_tensors_are_refused_in_one_line(
    changes: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None],
    saved: Path,
    bench: ModelBench,
) -> None:
    with pytest.raises(UserError) as caught:
        apply_recipe(load_recipe(edited(saved, **changes)), bench.model)
    assert "\n" not in str(caught.value)
