"""Recipes: everything that turns the float model into the deployed one, with no data.

`recipe.yaml` holds the candidate and digests, for people too; `recipe.safetensors` scales, bias
corrections, the vectors of rewrites, and the weights of every layer whose weights need data to make.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from safetensors import SafetensorError
from safetensors.numpy import load_file

from autoq.assembly.assemble import build_model, layer_weights, weight_choices
from autoq.assembly.plan import Plan, layer_sources, restore_plan, split_values
from autoq.calibration.outliers import Outliers
from autoq.core.artifacts import ModelArtifact
from autoq.core.choices import FLOAT, Candidate
from autoq.core.errors import ModelError, UserError
from autoq.core.quantization import ActivationParams
from autoq.core.tensor_files import save_tensors
from autoq.graph.blocks import find_blocks
from autoq.graph.float_model import FloatModel
from autoq.graph.rewriting import RewriteVectors, replay_rewrites
from autoq.variants.plain import compress_plainly, fits
from autoq.variants.variant import Variant

RECIPE_VERSION = 2
RECIPE_FILE = "recipe.yaml"
TENSORS_FILE = "recipe.safetensors"

Tensors = Mapping[str, npt.NDArray[Any]]
_MOST_YAML_BYTES = 1 << 23
_NOTHING = np.zeros(0, np.float32)


@dataclass(frozen=True)
class Recipe:
    """A candidate with the scales it was deployed with."""

    candidate: Candidate
    float_digest: str  # of the canonical float model
    model_digest: str  # of the deployed model, byte for byte
    activations: Mapping[str, ActivationParams]  # by tensor
    weight_scales: Tensors  # by quantised layer
    corrections: Tensors  # of biases, by layer that has one
    weights: Tensors  # by layer: those that the float weights alone do not tell
    outliers: Mapping[str, Outliers]  # by tensor that is split
    vectors: RewriteVectors  # of a narrowed model also the units kept, and what was refitted


@dataclass(frozen=True)
class Ingredients:
    """What a deployed model was made of, beside the float model."""

    plan: Plan
    variants: Mapping[str, Variant]
    vectors: RewriteVectors


def build_recipe(model: FloatModel, ingredients: Ingredients, deployed: ModelArtifact) -> Recipe:
    """Gather what `apply_recipe` needs to build the same bytes again."""
    plan, variants = ingredients.plan, ingredients.variants
    choices = weight_choices({name: plan.candidate.by_layer.get(name, FLOAT) for name in variants})
    return Recipe(
        candidate=plan.candidate,
        float_digest=model.summary.digest,
        model_digest=deployed.digest,
        activations=plan.params,
        weight_scales={name: one.scales for name, one in variants.items() if one.scales.size},
        corrections={name: one.correction for name, one in variants.items() if one.correction.size},
        outliers=plan.outliers,
        weights={name: one.weights for name, one in variants.items() if not choices[name].is_plain},
        vectors=ingredients.vectors,
    )


def apply_recipe(recipe: Recipe, model: FloatModel) -> ModelArtifact:
    """Rebuild the deployed model from the float model.

    Raises:
        ModelError: The float model is another one, or the result is not the recipe's.
    """
    if model.summary.digest != recipe.float_digest:
        raise ModelError(
            "the recipe belongs to another float model: "
            f"its digest is {model.summary.digest}, expected {recipe.float_digest}"
        )
    model = replay_rewrites(model, recipe.vectors)
    blocks = find_blocks(model.graph)
    plan = restore_plan(blocks, recipe.candidate, recipe.activations, recipe.outliers)
    missing = sorted(set(plan.domains.styles) - set(recipe.activations))
    missing += sorted(set(split_values(blocks, recipe.candidate)) - set(recipe.outliers))
    if missing:
        raise ModelError(f"the recipe lacks the scale of tensor {missing[0]!r}")
    _check_channels(recipe, model, layer_sources(blocks))
    artifact = build_model(model, blocks, plan, _variants(recipe, model))
    if artifact.digest != recipe.model_digest:
        raise ModelError(
            "the rebuilt model differs from the one the recipe was written for",
            hint="another version of autoq or onnx-ir? manifest.json names those of the export",
        )
    return artifact


def _check_channels(recipe: Recipe, model: FloatModel, sources: Mapping[str, str]) -> None:
    """Refuse outliers that a layer does not have.

    Raises:
        ModelError: The recipe names channels beyond a layer's inputs.
    """
    for layer in model.summary.layers:
        source = sources.get(layer.name)
        if source is not None and recipe.candidate.by_layer.get(layer.name, FLOAT).format.keeps_outliers:
            n_inputs = layer.weight_shape[1 - layer.channel_axis] if layer.is_matmul else 0
            if not all(0 <= channel < n_inputs for channel in recipe.outliers[source].channels):
                raise ModelError(f"the recipe's outliers are no inputs of layer {layer.name!r}")


def _variants(recipe: Recipe, model: FloatModel) -> dict[str, Variant]:
    weights = layer_weights(model)
    layers = {layer.name: layer for layer in model.summary.layers}
    unknown = sorted(set(recipe.candidate.by_layer) - set(layers))
    if unknown:
        raise ModelError(f"the recipe names layer {unknown[0]!r}, which the model does not have")
    choices = weight_choices({name: recipe.candidate.by_layer.get(name, FLOAT) for name in layers})
    variants = {}
    for name, choice in choices.items():
        stored = recipe.weight_scales.get(name, _NOTHING)
        if choice.is_plain:
            compressed, scales = compress_plainly(layers[name], weights[name], choice)
            if not np.array_equal(stored, scales):
                raise ModelError(f"the weight scales of layer {name!r} are not those of the recipe")
        elif name in recipe.weights:
            compressed, scales = recipe.weights[name], stored
        else:
            raise ModelError(f"the recipe lacks the weights of layer {name!r}")
        correction = recipe.corrections.get(name, _NOTHING)
        variants[name] = Variant(compressed, scales, correction, bundle_bytes=0)
        if not fits(layers[name], choice, variants[name]):
            raise ModelError(f"the recipe's tensors do not fit layer {name!r}")
    return variants


def save_recipe(recipe: Recipe, folder: Path) -> None:
    """Write both files of a recipe."""
    content = {
        "version": RECIPE_VERSION,
        "float_digest": recipe.float_digest,
        "model_digest": recipe.model_digest,
        "candidate_digest": recipe.candidate.digest,
        **recipe.candidate.to_json(),
    }
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(content, sort_keys=False))
    save_tensors(_tensors(recipe), folder / TENSORS_FILE)


def load_recipe(path: Path) -> Recipe:
    """Read a recipe from its YAML file; the tensors lie beside it.

    Raises:
        UserError: A file is missing or is not what autoq writes.
    """
    path = path / RECIPE_FILE if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path}: no such recipe", hint=f"expected a {RECIPE_FILE} written by autoq export")
    try:
        if path.stat().st_size > _MOST_YAML_BYTES:
            raise UserError(f"{path}: not a recipe that autoq wrote: over {_MOST_YAML_BYTES:,} bytes")
        content = yaml.safe_load(path.read_text())
        if content["version"] != RECIPE_VERSION:
            raise UserError(f"{path}: recipe version {content['version']}, expected {RECIPE_VERSION}")
        candidate = Candidate.from_json(content)
        if candidate.digest != content["candidate_digest"]:
            raise UserError(f"{path}: the choices have been edited since autoq wrote them")
        return _from_files(candidate, content, load_file(path.with_suffix(".safetensors")))
    except (yaml.YAMLError, UnicodeDecodeError, SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a readable recipe: {reason}") from error
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = " ".join(repr(error).split())[:200]
        raise UserError(f"{path}: not a recipe that autoq wrote: {reason}") from error


def _tensors(recipe: Recipe) -> dict[str, npt.NDArray[Any]]:
    tensors: dict[str, npt.NDArray[Any]] = {}
    for name, params in recipe.activations.items():
        tensors[f"scale/{name}"] = np.array([params.scale], np.float32)
        dtype = np.int8 if params.signed else np.uint8
        tensors[f"zero_point/{name}"] = np.array([params.zero_point], dtype)
    for name, split in recipe.outliers.items():
        tensors[f"outlier_channels/{name}"] = np.array(split.channels, np.int64)
        tensors[f"rest_scale/{name}"] = np.array([split.params.scale], np.float32)
        tensors[f"rest_zero_point/{name}"] = np.array([split.params.zero_point], split.params.dtype)
    for name, scales in recipe.weight_scales.items():
        tensors[f"weight/{name}"] = np.asarray(scales, order="C")
    for kind, mapping in _by_kind(recipe).items():
        tensors.update({f"{kind}/{name}": np.asarray(array, order="C") for name, array in mapping.items()})
    return tensors


def _by_kind(recipe: Recipe) -> dict[str, Tensors]:
    """Tensors by the first part of the name they are stored under."""
    return {
        "correction": recipe.corrections,
        "weights": recipe.weights,
        "kept": recipe.vectors.kept,
        "narrowed": recipe.vectors.constants,
        "equalize": recipe.vectors.equalize,
        "smooth": recipe.vectors.smooth,
    }


def _from_files(
    candidate: Candidate, content: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]
) -> Recipe:
    def named(kind: str) -> Tensors:
        return {key.partition("/")[2]: one for key, one in tensors.items() if key.startswith(f"{kind}/")}

    return Recipe(
        candidate=candidate,
        float_digest=str(content["float_digest"]),
        model_digest=str(content["model_digest"]),
        activations={name: _params(tensors, name) for name in named("zero_point")},
        weight_scales=named("weight"),
        corrections=named("correction"),
        outliers={
            name: Outliers(tuple(map(int, channels)), _params(tensors, name, "rest_"))
            for name, channels in named("outlier_channels").items()
        },
        weights=named("weights"),
        vectors=RewriteVectors(named("kept"), named("narrowed"), named("equalize"), named("smooth")),
    )


def _params(tensors: Tensors, name: str, prefix: str = "") -> ActivationParams:
    """Read scale and zero point of one tensor.

    Raises:
        ValueError: The scale is none.
    """
    scale, zero = float(tensors[f"{prefix}scale/{name}"][0]), tensors[f"{prefix}zero_point/{name}"]
    if not (np.isfinite(scale) and scale > 0.0):
        raise ValueError(f"the scale of {name} is {scale}")
    if zero.dtype not in (np.int8, np.uint8):
        raise ValueError(f"the zero point of {name} is {zero.dtype}, expected int8 or uint8")
    return ActivationParams(scale, int(zero[0]), zero.dtype == np.int8)
