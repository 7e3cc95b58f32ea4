"""The other ways to bring a model, data and a store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import TensorProto
from tiny_case import N_CLASSES, NAME, ledger_of, run_autoq, write_case

from autoq.testing.models import N_TOKENS, GraphBuilder

TORCH_MODEL = """
import torch


def create_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 3, stride=2, padding=1), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(32, 4),
    )
"""
TORCH_DATA = """
import numpy as np


def batches(n_batches, seed):
    rng = np.random.default_rng(seed)
    for _ in range(n_batches):
        images = rng.standard_normal((8, 3, 16, 16)).astype(np.float32)
        yield {"input": images}, rng.integers(0, 4, 8)


def calibration():
    print("noise on stdout, which --json must not see")
    return batches(2, 0)


def labelled():
    return batches(12, 1)
"""
FISHER_SPACE = {
    "version": 1,
    "layers": {"*": {"format": ["fp32", "int8"]}},
    "rewrites": {"widths": {"given": {"slim": {"*": 0.5}}, "criterion": "fisher"}},
}
TEXT_DATA = """
import numpy as np


def batches(n_batches, seed):
    rng = np.random.default_rng(seed)
    for number in range(n_batches):
        n, length = 6, 4 + 3 * (number % 3)  # bucketed: each batch has its own length
        tokens = rng.integers(0, 24, (n, length))
        mask = np.ones((n, length), np.int64)
        mask[0, length // 2:] = 0
        yield {"tokens": tokens, "mask": mask}, tokens.sum(axis=1) % 4


def calibration():
    return batches(3, 0)


def search():
    return batches(6, 1)


def set_score(outputs, reference, labels):
    assert outputs["logits"].shape == (len(labels), 4)
    return float((outputs["logits"].argmax(axis=1) == reference["logits"].argmax(axis=1)).mean())


def example_error(outputs, reference, labels):
    return np.abs(outputs["logits"] - reference["logits"]).mean(axis=1)
"""
SPACE = {"version": 1, "layers": {"*": {"format": ["fp32", "int8", "int8_dynamic"]}}}


def text_network() -> onnx.ModelProto:
    """Build an embedding, a masked mean over any number of tokens, and two outputs."""
    net = GraphBuilder(seed=2)
    tokens = net.input("tokens", "batch", "length", dtype=TensorProto.INT64)
    mask = net.input("mask", "batch", "length", dtype=TensorProto.INT64)
    table = net.constant("embedding.weight", net.rng.standard_normal((N_TOKENS, 16)))
    x = net.node("Relu", net.linear(net.node("Gather", table, tokens), "encode", 16, 16))
    weights = net.node("Cast", mask, to=TensorProto.FLOAT)
    axis = net.constant("axis", [1], np.int64)
    kept = net.node("Mul", x, net.node("Unsqueeze", weights, net.constant("last", [2], np.int64)))
    count = net.node("ReduceSum", weights, axis, keepdims=1)
    pooled = net.node("Div", net.node("ReduceSum", kept, axis, keepdims=0), count)
    logits = net.gemm(pooled, "fc", 16, N_CLASSES)
    return net.build(logits=(logits, ("batch", N_CLASSES)), hidden=(pooled, ("batch", 16)))


def search(folder: Path, content: dict[str, Any], *extra: str, **variables: str) -> dict[str, Any]:
    spec = folder / "spec.yaml"
    spec.write_text(yaml.safe_dump(content))
    ran = run_autoq("search", spec, "--home", folder / "home", "--json", *extra, **variables)
    assert ran.returncode == 0, ran.stderr
    report: dict[str, Any] = json.loads(ran.stdout)
    assert report["state"] == "finished"
    return report


def base(**parts: Any) -> dict[str, Any]:
    timing = {"search_s": 0.1, "final_s": 0.1}
    return {"version": 1, "name": NAME, "timing": timing, "search": {"trials": 2}, **parts}


def test_a_torch_module_is_searched_on_data_from_a_factory_and_narrowed_by_its_gradients(
    tmp_path: Path,
) -> None:
    (tmp_path / "model.py").write_text(TORCH_MODEL)
    (tmp_path / "data.py").write_text(TORCH_DATA)
    report = search(
        tmp_path,
        base(
            model={
                "torch": "model.py:create_model",
                "example": {"input": {"shape": ["batch", 3, 16, 16], "low": -1, "high": 1}},
            },
            data={
                "calibration": {"python": "data.py:calibration"},
                "labelled": {"python": "data.py:labelled"},
                "split": {"search": 0.6, "test": 0.4},
            },
            space=FISHER_SPACE,
            search={"trials": 3},
        ),
    )
    with ledger_of(tmp_path / "home") as ledger:
        narrow = ledger.load_trials(NAME)[-1]
    assert narrow.origin.endswith("narrowed to slim")
    assert narrow.measurement is not None
    assert str(narrow.candidate.rewrites) == "1 channel group narrowed + ordered by fisher"
    assert report["front"][0]["choices"].keys() == {"0", "4"}
    assert report["front"][0]["n_examples"] == 57
    assert report["baseline"]["test_accuracy"] is not None


def text_case(folder: Path, metric: dict[str, Any]) -> dict[str, Any]:
    onnx.save(text_network(), folder / "text.onnx")
    (folder / "data.py").write_text(TEXT_DATA)
    splits = {name: {"python": f"data.py:{name}"} for name in ("calibration", "search")}
    return base(
        model={"path": "text.onnx", "output": "logits"},
        data=splits,
        metric=metric,
        timing={"search_s": 0.1, "final_s": 0.1, "shapes": {"length": 8}},
        space=SPACE,
    )


def test_ragged_tokens_with_a_mask_are_scored_as_a_set(tmp_path: Path) -> None:
    report = search(tmp_path, text_case(tmp_path, {"python": "data.py:set_score", "scope": "set"}))
    assert (report["metric"], report["baseline"]["accuracy"]) == ("set_score", 1.0)
    assert report["baseline"]["test_accuracy"] is None
    for point in report["front"]:
        assert {"encode", "fc"} <= point["choices"].keys()
        assert (point["n_examples"], point["accuracy_drop_ci"], point["holds"]) == (36, None, None)


def test_a_metric_where_lower_is_better_is_scored_by_example(tmp_path: Path) -> None:
    metric = {"python": "data.py:example_error", "scope": "example", "direction": "minimize"}
    report = search(tmp_path, text_case(tmp_path, metric))
    assert report["baseline"]["accuracy"] == 0.0
    assert all(point["accuracy_drop"] == point["accuracy"] >= 0.0 for point in report["front"])


def test_a_search_kept_in_postgresql(tmp_path: Path, postgres_url: str) -> None:
    spec, home = write_case(tmp_path, {"search.trials": 1}), tmp_path / "home"
    ran = run_autoq("search", spec, "--home", home, "--json", AUTOQ_STORAGE=postgres_url)
    assert ran.returncode == 0, ran.stderr
    assert not (home / "autoq.db").exists()
    shown = run_autoq("front", NAME, "--home", home, "--json", AUTOQ_STORAGE=postgres_url)
    assert json.loads(shown.stdout) == json.loads(ran.stdout)
    assert run_autoq("delete", NAME, "--yes", "--home", home, AUTOQ_STORAGE=postgres_url).returncode == 0
    listed = run_autoq("list", "--home", home, "--json", AUTOQ_STORAGE=postgres_url)
    assert json.loads(listed.stdout) == {"searches": []}
