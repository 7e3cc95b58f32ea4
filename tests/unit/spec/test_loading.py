import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoq.core.choices import Criterion
from autoq.core.errors import SpecError
from autoq.search.goals import Constraints, Goals, Objective
from autoq.spec.loading import load_spec, spec_digest, spec_from_json
from autoq.spec.reading import read_yaml
from autoq.spec.schema import NpzSource, OnnxModelSpec, SearchSpec, TorchModelSpec

MINIMAL = """\
version: 1
name: demo
model: {path: model.onnx}
data:
  calibration: {npz: d.npz, inputs: {x: a}}
  search: {npz: d.npz, inputs: {x: b}, labels: y}
"""


def write(folder: Path, text: str, name: str = "spec.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def with_keys(**sections: Any) -> str:
    return yaml.safe_dump({**yaml.safe_load(MINIMAL), **sections}, sort_keys=False)


def load(folder: Path, **sections: Any) -> SearchSpec:
    return load_spec(write(folder, with_keys(**sections)))


def error_of(path: Path, overrides: dict[str, object] | None = None) -> str:
    with pytest.raises(SpecError) as caught:
        load_spec(path, overrides)
    return str(caught.value)


def test_a_minimal_spec_takes_the_documented_defaults(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, MINIMAL))
    assert spec.metric == "top1"
    assert spec.goals == Goals((Objective.ACCURACY, Objective.LATENCY), Constraints(), maximize=True)
    assert spec.target.model_dump() == {
        "runtime": "onnxruntime",
        "device": "cpu",
        "threads": 1,
        "batch_size": 1,
    }
    assert spec.timing.model_dump() == {
        "shapes": {},
        "search_s": 3.0,
        "final_s": 30.0,
        "fixed_effort": False,
    }
    assert spec.search.model_dump() == {
        "trials": 60,
        "time_budget_s": None,
        "patience": None,
        "seed": 0,
        "strategy": "guided",
        "trial_timeout_s": 120.0,
        "trial_memory_mb": 4096,
        "racing": True,
        "finalist_rounding": None,
    }
    assert spec.space == load(tmp_path, space="cnn").space


def test_paths_refer_to_the_folder_of_the_spec(tmp_path: Path) -> None:
    metric = {"python": "../metrics.py:f", "scope": "set", "direction": "minimize"}
    spec = load(tmp_path, metric=metric)
    assert isinstance(spec.model, OnnxModelSpec)
    assert isinstance(spec.data.search, NpzSource)
    assert spec.model.path == tmp_path / "model.onnx"
    assert spec.data.search.npz == tmp_path / "d.npz"
    assert not isinstance(spec.metric, str)
    assert spec.metric.python == f"{tmp_path.parent / 'metrics.py'}:f"
    assert not spec.goals.maximize


def test_a_reference_to_a_module_stays_as_it_is(tmp_path: Path) -> None:
    example = {"tokens": {"shape": ["batch", 7], "dtype": "int64", "high": 100}, "a": {"shape": [1]}}
    model = {"torch": "package.models:build", "example": example, "checkpoint": "w.pt"}
    spec = load(tmp_path, model=model)
    assert isinstance(spec.model, TorchModelSpec)
    assert spec.model.torch == "package.models:build"
    assert spec.model.checkpoint == tmp_path / "w.pt"
    assert list(spec.model.example) == ["tokens", "a"]
    assert spec.model.example["tokens"].shape == ("batch", 7)


def test_json_gives_the_same_spec_back_even_from_a_store_that_sorts_keys(tmp_path: Path) -> None:
    example = {"z": {"shape": [1]}, "a": {"shape": [2, "seq"]}}
    space = {
        "version": 1,
        "layers": {"z*": {"format": "int8"}, "a*": {"sparsity": 0.3}},
        "graph": {"mul": "float", "add": ["int8", "float"]},
        "anchors": [{"name": "mine", "layers": {"z": {"format": "int8_s8"}, "a": {"format": "fp32"}}}],
    }
    spec = load(
        tmp_path,
        model={"torch": "m.py:f", "example": example},
        metric={"python": "m.py:g", "bounds": [0, 1]},
        space=space,
        timing={"shapes": {"seq": 64}},
    )
    stored = json.loads(json.dumps(spec.to_json(), sort_keys=True))
    again = spec_from_json(stored)
    assert again == spec
    assert isinstance(again.model, TorchModelSpec)
    assert list(again.model.example) == ["z", "a"]
    assert again.space.rules() == spec.space.rules()
    assert spec_digest(again) == spec_digest(spec)


def test_overrides_replace_what_the_file_says(tmp_path: Path) -> None:
    path = write(tmp_path, with_keys(search={"trials": 5, "seed": 3}, constraints=None))
    spec = load_spec(path, {"search.trials": 9, "constraints.max_latency_ms": 0.8, "search.patience": None})
    assert (spec.search.trials, spec.search.seed, spec.search.patience) == (9, 3, None)
    assert spec.constraints.max_latency_ms == 0.8


def test_a_wrong_override_blames_the_command_line(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    assert error_of(path, {"search.trials": 0}) == (
        "command line: search.trials: expected a number of at least 1, got 0"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"path": "other.onnx"}},
        {"metric": "fidelity"},
        {"objectives": ["latency", "accuracy"]},
        {"constraints": {"max_accuracy_drop": 0.01}},
        {"target": {"threads": 2}},
        {"timing": {"search_s": 1}},
        {"space": "storage"},
        {"search": {"seed": 1}},
        {"search": {"strategy": "random"}},
        {"data": {**yaml.safe_load(MINIMAL)["data"], "transform": {"x": {"scale": 2}}}},
    ],
)
def test_the_digest_changes_with_what_decides_the_search(tmp_path: Path, change: dict[str, Any]) -> None:
    assert spec_digest(load(tmp_path, **change)) != spec_digest(load(tmp_path))


def test_the_digest_stays_when_only_the_effort_changes(tmp_path: Path) -> None:
    search = {"trials": 7, "time_budget_s": 9, "patience": 2, "trial_timeout_s": 1, "trial_memory_mb": 99}
    assert spec_digest(load(tmp_path, name="other", search=search)) == spec_digest(load(tmp_path))


def test_the_digest_follows_the_order_of_widths_by_group_and_survives_a_store_that_sorts(
    tmp_path: Path,
) -> None:
    def spec(widths: object) -> SearchSpec:
        layers = {"*": {"format": ["fp32", "int8"]}}
        return load(tmp_path, space={"version": 1, "layers": layers, "rewrites": {"widths": widths}})

    first = spec({"given": {"slim": {"stem": 0.5, "*": 0.8}}})
    other = spec({"given": {"slim": {"*": 0.8, "stem": 0.5}}})
    assert spec_digest(first) != spec_digest(other)
    again = spec_from_json(json.loads(json.dumps(first.to_json(), sort_keys=True)))
    assert again.space.rules() == first.space.rules()
    assert spec_digest(again) == spec_digest(first)
    plain = {"latency": [0.5], "groups": {"*": {"min": 0.25}}}
    assert spec_digest(spec(plain)) == spec_digest(spec({**plain, "refit": "nested", "given": {}}))
    assert spec_digest(spec(plain)) != spec_digest(spec({**plain, "refit": "sequential"}))
    assert spec_digest(spec(plain)) == spec_digest(spec({**plain, "criterion": "obs"}))
    others = {spec_digest(spec({**plain, "criterion": name})) for name in ("obs", "magnitude", "activation")}
    assert len(others) == 3


def test_fisher_scores_are_for_torch_modules(tmp_path: Path) -> None:
    widths = {"latency": [0.5], "criterion": "fisher"}
    space = {"version": 1, "layers": {"*": {"format": "int8"}}, "rewrites": {"widths": widths}}
    model = {"torch": "m.py:f", "example": {"x": {"shape": [1]}}}
    loaded = load(tmp_path, model=model, space=space)
    again = spec_from_json(json.loads(json.dumps(loaded.to_json())))
    assert again.space.rules().rewrites.widths.criterion is Criterion.FISHER
    with pytest.raises(SpecError, match=r"widths.criterion: fisher needs gradients.*torch factory"):
        load(tmp_path, space=space)


def test_the_digest_follows_the_content_and_the_order_of_the_space(tmp_path: Path) -> None:
    def digest(layers: dict[str, Any], description: str = "") -> str:
        space = {"version": 1, "description": description, "layers": layers}
        return spec_digest(load(tmp_path, space=space))

    wide, narrow = {"*": {"format": ["fp32", "int8"]}}, {"fc": {"format": "fp32"}}
    assert digest({**wide, **narrow}) != digest({**narrow, **wide})
    assert digest(wide) == digest(wide, "explained")
    write(tmp_path, yaml.safe_dump({"version": 1, "layers": wide}), "mine.yaml")
    assert spec_digest(load(tmp_path, space="mine.yaml")) == digest(wide)


CALIBRATION = {"npz": "d.npz", "inputs": {"x": "a"}}
SEARCH = {"npz": "d.npz", "inputs": {"x": "b"}}
BAD = [
    ({"search": {"trials": "many"}}, "search.trials: expected a whole number, got 'many'"),
    ({"search": {"trials": True}}, "search.trials: expected a whole number, got True"),
    ({"search": {"trials": 2.5}}, "search.trials: expected a whole number, got 2.5"),
    ({"search": {"trials": 0}}, "search.trials: expected a number of at least 1, got 0"),
    ({"search": {"trails": 5}}, "search.trails: unknown key, did you mean 'trials'?"),
    ({"search": {"seed": -1}}, "search.seed: expected a number of at least 0, got -1"),
    ({"search": {"time_budget_s": 0}}, "search.time_budget_s: expected a number greater than 0, got 0"),
    (
        {"search": {"strategy": "magic"}},
        "search.strategy: expected 'guided', 'tpe', 'nsga2', 'gp' or 'random', got 'magic'",
    ),
    ({"search": 5}, "search: expected a mapping, got 5"),
    (
        {"zzz": 1},
        "zzz: unknown key, expected one of version, name, model, data, metric, objectives, constraints, "
        "target, timing, space, search",
    ),
    ({"version": 2}, "version: expected 1, got 2"),
    ({"version": None}, "version: expected 1, got nothing"),
    (
        {"name": "No Spaces"},
        "name: expected 1 to 64 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit, "
        "got 'No Spaces'",
    ),
    ({"model": None}, "model: expected {path: FILE} or {torch: FACTORY, example: {...}}, got nothing"),
    (
        {"model": {"file": "m.onnx"}},
        "model: expected {path: FILE} or {torch: FACTORY, example: {...}}, got a mapping with file",
    ),
    ({"model": {"path": 3}}, "model.path: expected the path of a file, got 3"),
    ({"model": {"path": "m.onnx", "ouput": "y"}}, "model.ouput: unknown key, did you mean 'output'?"),
    ({"model": {"torch": "m.py:f"}}, "model.example: missing, but required"),
    (
        {"model": {"torch": "m.py", "example": {"x": {"shape": [1]}}}},
        "model.torch: expected 'file.py:function' or 'package.module:function', got 'm.py'",
    ),
    (
        {"model": {"torch": "m.py:f", "example": {"x": {"shape": [1], "dtyp": "int8"}}}},
        "model.example.x.dtyp: unknown key, did you mean 'dtype'?",
    ),
    ({"data": {"search": SEARCH}}, "data.calibration: missing, but required"),
    (
        {"data": {"calibration": CALIBRATION}},
        "data: no search split, expected search, or labelled with split",
    ),
    (
        {"data": {"calibration": CALIBRATION, "labelled": SEARCH}},
        "data: labelled and split need each other: a set, and the fractions to split it into",
    ),
    (
        {"data": {"calibration": CALIBRATION, "search": SEARCH, "labelled": SEARCH, "split": {"search": 1}}},
        "data: two sources of one split, expected either search and test, or labelled with split",
    ),
    (
        {"data": {"calibration": CALIBRATION, "labelled": SEARCH, "split": {"search": 0.7, "test": 0.4}}},
        "data.split: the fractions sum to 1.1, expected at most 1",
    ),
    (
        {"data": {"calibration": CALIBRATION, "search": "d.npz"}},
        "data.search: expected {npz: FILE, inputs: {...}} or {python: FACTORY}, got 'd.npz'",
    ),
    (
        {"data": {"calibration": CALIBRATION, "search": {**SEARCH, "lables": "y"}}},
        "data.search.lables: unknown key, did you mean 'labels'?",
    ),
    (
        {"data": {"calibration": CALIBRATION, "search": SEARCH, "transform": {"x": {"scale": 0}}}},
        "data.transform.x.scale: expected a number other than 0, got 0",
    ),
    (
        {"data": {"calibration": CALIBRATION, "search": SEARCH, "transform": {"x": {"scale": float("nan")}}}},
        "data.transform.x.scale: expected a finite number, got nan",
    ),
    (
        {"metric": "topp1"},
        "metric: expected top1, top5, fidelity or {python: 'file.py:function', ...}, got 'topp1'",
    ),
    (
        {"metric": {"python": "m.py:f", "scope": "all"}},
        "metric.scope: expected 'example' or 'set', got 'all'",
    ),
    (
        {"metric": {"python": "m.py:f", "bounds": [1, 0]}},
        "metric.bounds: expected [low, high] with low < high, got [1, 0]",
    ),
    ({"metric": {"python": "m.py:f", "bounds": [1]}}, "metric.bounds[1]: missing, but required"),
    (
        {"objectives": ["speed"]},
        "objectives[0]: expected 'accuracy', 'latency', 'size' or 'storage', got 'speed'",
    ),
    ({"objectives": []}, "objectives: expected at least 1 entries, got []"),
    (
        {"objectives": ["size", "size"]},
        "objectives: expected no entry twice, but 'size' is, got ['size', 'size']",
    ),
    (
        {"objectives": ["accuracy", "latency", "size", "storage"]},
        "objectives: expected at most 3 objectives, got ['accuracy', 'latency', 'size', 'storage']",
    ),
    (
        {"constraints": {"max_latency_ms": 0}},
        "constraints.max_latency_ms: expected a number greater than 0, got 0",
    ),
    (
        {"constraints": {"max_latency_ratio": float("inf")}},
        "constraints.max_latency_ratio: expected a finite number, got inf",
    ),
    (
        {"constraints": {"max_accuracy_drop": -0.1}},
        "constraints.max_accuracy_drop: expected a number of at least 0, got -0.1",
    ),
    (
        {"constraints": {"max_size_bytes": "3MB"}},
        "constraints.max_size_bytes: expected a whole number, got '3MB'",
    ),
    ({"target": {"threads": 0}}, "target.threads: expected a number of at least 1, got 0"),
    ({"timing": {"fixed_effort": 1}}, "timing.fixed_effort: expected true or false, got 1"),
    ({"timing": {"shapes": {"seq": 0}}}, "timing.shapes.seq: expected a number of at least 1, got 0"),
    (
        {"space": "cnm"},
        "space: no search space named 'cnm', did you mean 'cnn'? "
        "(a space of your own is given as a path that ends in .yaml)",
    ),
    (
        {"space": {"version": 1, "layers": {"layer1.*": {"formt": "int8"}}}},
        "space.layers.\"layer1.*\".formt: unknown key, did you mean 'format'?",
    ),
]


@pytest.mark.parametrize(("change", "expected"), BAD, ids=[expected for _, expected in BAD])
def test_a_bad_value_is_one_line_with_its_key(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    path = write(tmp_path, with_keys(**change))
    assert error_of(path) == f"{path}: {expected}"


def test_several_problems_are_one_line_each(tmp_path: Path) -> None:
    path = write(tmp_path, with_keys(search={"trials": "x", "seeed": 1}, name=7))
    assert error_of(path).splitlines() == [
        f"{path}: name: expected text, got 7",
        f"{path}: search.trials: expected a whole number, got 'x'",
        f"{path}: search.seeed: unknown key, did you mean 'seed'?",
    ]


FILES = [
    (b"", "the file is empty, expected a mapping"),
    (b"# nothing\n", "the file is empty, expected a mapping"),
    (b"- a\n- b\n", "expected a mapping of keys to values, got list"),
    (b"\xff\xfe\x00spec", "not a text file, expected YAML in UTF-8"),
    (b"a: 1\nb: [2\n", "line 3: not valid YAML: expected ',' or ']', but got '<stream end>'"),
    (b"a: 1\nb: 2\na: 3\n", "line 3: not valid YAML: key 'a' is given twice, first on line 1"),
    (
        b"s:\n  t: {x: 1, x: 2}\n",
        "line 2: not valid YAML: key 'x' is given twice, first on line 2",
    ),
    (
        b"a: !!python/object/apply:os.getcwd []\n",
        "line 1: not valid YAML: could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/object/apply:os.getcwd'",
    ),
    (b"a: !!int x\n", "not valid YAML: invalid literal for int() with base 10: 'x'"),
    (b"a: \x01\n", "not valid YAML: unacceptable character #x0001: special characters are not allowed"),
]


@pytest.mark.parametrize(("content", "expected"), FILES, ids=[expected for _, expected in FILES])
def test_a_file_that_is_not_a_mapping_in_yaml_is_refused(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(content)
    message = error_of(path)
    assert message.startswith(f"{path}: {expected}")
    assert "\n" not in message


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert error_of(tmp_path / "no.yaml") == f"{tmp_path / 'no.yaml'}: no such file"
    assert error_of(tmp_path) == f"{tmp_path}: is a folder, expected a YAML file"


def test_nesting_without_end_is_refused(tmp_path: Path) -> None:
    assert "not valid YAML" in error_of(write(tmp_path, "a: " + "[" * 5000))


def test_scalars_are_read_as_yaml_1_2_has_them(tmp_path: Path) -> None:
    text = MINIMAL + "constraints: {max_accuracy_drop: 1e-3, max_size_bytes: 3e6}\n"
    constraints = load_spec(write(tmp_path, text)).constraints
    assert (constraints.max_accuracy_drop, constraints.max_size_bytes) == (1e-3, 3_000_000)
    path = write(tmp_path, MINIMAL.replace("demo", "no"))
    assert load_spec(path).name == "no"
    path = write(tmp_path, MINIMAL.replace("demo", "2024-13-45"))
    assert load_spec(path).name == "2024-13-45"


def test_a_stored_spec_of_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="stored spec: version: expected 1, got 7"):
        spec_from_json({**load(tmp_path).to_json(), "version": 7})


def test_keys_that_are_merged_in_are_not_given_twice(tmp_path: Path) -> None:
    text = "a: &a {k: 1, m: 2}\nx: {y: &b {<<: *a, k: 3}}\nc: {<<: *b}\n"
    (tmp_path / "merged.yaml").write_text(text)
    assert read_yaml(tmp_path / "merged.yaml")["c"] == {"k": 3, "m": 2}


def test_the_digest_follows_neither_folders_nor_the_way_to_a_file(tmp_path: Path) -> None:
    near, far = tmp_path / "near", tmp_path / "far" / "away"
    for folder in (near, far):
        folder.mkdir(parents=True)
    metric = {"python": "m.py:g", "bounds": [0, 1]}
    assert spec_digest(load(near, metric=metric)) == spec_digest(load(far, metric=metric))
    assert spec_digest(load(near, metric=metric)) != spec_digest(
        load(near, metric={**metric, "python": "m.py:h"})
    )


@pytest.mark.parametrize(
    ("metric", "most"), [("top1", 1), ("fidelity", 2), ({"python": "m.py:g", "bounds": [0, 5]}, 5)]
)
def test_a_metric_cannot_drop_by_more_than_its_range(tmp_path: Path, metric: object, most: float) -> None:
    assert load(tmp_path, metric=metric, constraints={"max_accuracy_drop": most})
    with pytest.raises(SpecError, match=f"max_accuracy_drop: expected at most {most}, the whole range"):
        load(tmp_path, metric=metric, constraints={"max_accuracy_drop": most + 0.1})
    assert load(tmp_path, metric={"python": "m.py:g"}, constraints={"max_accuracy_drop": 50.0})
    stored = load(tmp_path, metric=metric, constraints={"max_accuracy_drop": most}).to_json()
    stored["constraints"]["max_accuracy_drop"] = most + 1.0  # from before there was a check
    assert spec_from_json(stored).constraints.max_accuracy_drop == most + 1.0
