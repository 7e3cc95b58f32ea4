from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoq.core.errors import DataError
from autoq.core.layers import TensorSpec
from autoq.spec.data import DataSplits, load_data
from autoq.spec.schema import SearchSpec

Maker = Callable[..., SearchSpec]
Arrays = dict[str, Any]
IMAGE = (TensorSpec("x", "float32", ("batch", 3, 4)),)
TOKENS = (TensorSpec("ids", "int64", ("batch", "seq")), TensorSpec("mask", "int64", ("batch", "seq")))


def npz(array: str, labels: str | None = None, model_input: str = "x") -> dict[str, Any]:
    return {"npz": "d.npz", "inputs": {model_input: array}, **({"labels": labels} if labels else {})}


def save(folder: Path, arrays: Arrays) -> None:
    np.savez(folder / "d.npz", **arrays)


def message_of(load: Callable[[], DataSplits]) -> str:
    with pytest.raises(DataError) as caught:
        load()
    return str(caught.value)


def test_npz_splits_are_read_with_labels(tmp_path: Path, spec_with_data: Maker, images: Arrays) -> None:
    save(tmp_path, images)
    spec = spec_with_data("top1", calibration=npz("a"), search=npz("b", "b_y"), test=npz("c", "c_y"))
    data = load_data(spec, IMAGE)
    assert data.test is not None
    assert (data.calibration.n_examples, data.search.n_examples, data.test.n_examples) == (4, 10, 6)
    assert data.calibration.labels is None
    assert data.search.labels is not None
    np.testing.assert_array_equal(data.search.labels, images["b_y"])
    np.testing.assert_array_equal(next(data.search.feeds(10))["x"], images["b"])
    assert data.warnings == ()


def test_raw_bytes_stay_small_until_a_transform_feeds_them(tmp_path: Path, spec_with_data: Maker) -> None:
    rng = np.random.default_rng(0)
    raw = {name: rng.integers(0, 256, (5, 3, 4), dtype=np.uint8) for name in "ab"}
    save(tmp_path, raw)
    transform = {"x": {"scale": 0.5, "offset": -1}}
    spec = spec_with_data(calibration=npz("a"), search=npz("b"), transform=transform)
    split = load_data(spec, IMAGE).search
    assert split.batches[0].inputs["x"].dtype == np.uint8
    fed = next(split.feeds(5))["x"]
    assert fed.dtype == np.float32
    np.testing.assert_array_equal(fed, raw["b"].astype(np.float32) * 0.5 - 1)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_a_transform_ends_in_the_float_type_of_the_model(
    tmp_path: Path, spec_with_data: Maker, dtype: str
) -> None:
    save(tmp_path, {"a": np.ones((2, 3), np.uint8), "b": np.zeros((2, 3), np.uint8)})
    spec = spec_with_data(calibration=npz("a"), search=npz("b"), transform={"x": {"offset": 3}})
    fed = next(load_data(spec, [TensorSpec("x", dtype, (None, 3))]).search.feeds(2))["x"]
    assert fed.dtype == dtype
    np.testing.assert_array_equal(fed, np.full((2, 3), 3))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("uint8", "float32"), ("float64", "float32"), ("int32", "int64"), ("uint64", "int8"), ("bool", "int64")],
)
def test_numbers_are_cast_to_what_the_model_takes(
    tmp_path: Path, spec_with_data: Maker, given: str, wanted: str
) -> None:
    save(tmp_path, {"a": np.zeros((2, 3), given), "b": np.ones((2, 3), given)})
    spec = spec_with_data(calibration=npz("a"), search=npz("b"))
    data = load_data(spec, [TensorSpec("x", wanted, (None, 3))])
    assert data.search.batches[0].inputs["x"].dtype == wanted


def test_a_static_batch_axis_takes_any_number_of_examples(
    tmp_path: Path, spec_with_data: Maker, images: Arrays
) -> None:
    save(tmp_path, images)
    spec = spec_with_data(calibration=npz("a"), search=npz("b"))
    assert load_data(spec, [TensorSpec("x", "float32", (1, 3, 4))]).search.n_examples == 10


def test_one_labelled_set_is_dealt_out_disjoint_and_repeatably(
    tmp_path: Path, spec_with_data: Maker, images: Arrays
) -> None:
    save(tmp_path, images)

    def load(seed: int) -> DataSplits:
        split = {"search": 0.6, "test": 0.4, "seed": seed}
        spec = spec_with_data("top1", calibration=npz("a"), labelled=npz("b", "b_y"), split=split)
        return load_data(spec, IMAGE)

    data = load(0)
    assert data.test is not None
    assert data.search.labels is not None
    assert data.test.labels is not None
    assert (len(data.search.labels), len(data.test.labels)) == (6, 4)
    assert sorted([*data.search.labels, *data.test.labels]) == list(range(10))
    np.testing.assert_array_equal(data.search.batches[0].inputs["x"], images["b"][data.search.labels])
    assert load(0).search.digest == data.search.digest
    assert load(1).search.digest != data.search.digest


def test_a_split_without_test_leaves_the_rest_unused(
    tmp_path: Path, spec_with_data: Maker, images: Arrays
) -> None:
    save(tmp_path, images)
    spec = spec_with_data(calibration=npz("a"), labelled=npz("b"), split={"search": 0.5})
    data = load_data(spec, IMAGE)
    assert (data.search.n_examples, data.test) == (5, None)


def test_a_fraction_of_a_small_set_must_leave_something(
    tmp_path: Path, spec_with_data: Maker, images: Arrays
) -> None:
    save(tmp_path, images)
    spec = spec_with_data(calibration=npz("a"), labelled=npz("b"), split={"search": 0.5, "test": 0.01})
    assert message_of(lambda: load_data(spec, IMAGE)) == "data.split.test: 0.01 of 10 examples is none"


def test_splits_with_the_same_examples_are_refused_however_they_are_ordered(
    tmp_path: Path, spec_with_data: Maker, images: Arrays
) -> None:
    save(tmp_path, {**images, "shuffled": images["b"][::-1]})
    spec = spec_with_data(calibration=npz("a"), search=npz("b"), test=npz("shuffled"))
    expected = "data.test: the same examples as data.search, expected other data"
    assert message_of(lambda: load_data(spec, IMAGE)) == expected


def test_shared_examples_are_counted_in_a_warning(
    tmp_path: Path, spec_with_data: Maker, images: Arrays
) -> None:
    save(tmp_path, {**images, "c": np.concatenate([images["c"], images["b"][:3]])})
    spec = spec_with_data(calibration=npz("a"), search=npz("b"), test=npz("c"))
    assert load_data(spec, IMAGE).warnings == (
        "data.test: 3 of 9 examples are also in data.search; figures on it look better than they are",
    )


def test_named_axes_must_agree_between_inputs(tmp_path: Path, spec_with_data: Maker) -> None:
    ids = np.arange(8).reshape(2, 4)
    save(tmp_path, {"i": ids, "m": ids[:, :3], "m2": ids[:1]})
    for mask, expected in [
        ("m", "array 'm' of d.npz has 3 along axis 'seq', expected 4 as array 'i' of d.npz has"),
        ("m2", "array 'm2' of d.npz has 1 examples, expected 2 as array 'i' of d.npz has"),
    ]:
        source = {"npz": "d.npz", "inputs": {"ids": "i", "mask": mask}}
        spec = spec_with_data(calibration=source, search=source)
        message = message_of(lambda spec=spec: load_data(spec, TOKENS))  # type: ignore[misc]
        assert message == f"data.calibration.inputs.mask: {expected}"


SPOILED = [
    ("shape", np.ones((4, 3, 5)), "has shape (4, 3, 5), expected (n, 3, 4) for input 'x'"),
    ("rank", np.ones((4, 3)), "has shape (4, 3), expected (n, 3, 4) for input 'x'"),
    ("empty", np.ones((0, 3, 4)), "is empty, its shape is (0, 3, 4)"),
    ("scalar", np.float32(1), "is a single number, expected an array with a first axis of examples"),
    ("text", np.full((4, 3, 4), "a"), "holds <U1, expected numbers"),
    ("objects", np.full((4, 3, 4), None), "holds Python objects, expected numbers"),
    ("huge", np.full((4, 3, 4), 1e300), "holds values from 1e+300 to 1e+300, which do not fit float32"),
]


@pytest.mark.parametrize(("values", "expected"), [row[1:] for row in SPOILED], ids=[r[0] for r in SPOILED])
def test_an_array_that_does_not_fit_is_named(
    tmp_path: Path, spec_with_data: Maker, images: Arrays, values: Any, expected: str
) -> None:
    save(tmp_path, {**images, "b": values})
    spec = spec_with_data(calibration=npz("a"), search=npz("b"))
    message = message_of(lambda: load_data(spec, IMAGE))
    assert message.startswith(f"data.search.inputs.x: array 'b' of d.npz {expected}")
    assert "\n" not in message


@pytest.mark.parametrize(("value", "name"), [(np.nan, "NaN"), (-np.inf, "Inf")])
def test_nan_and_inf_are_found_with_their_place(
    tmp_path: Path, spec_with_data: Maker, images: Arrays, value: float, name: str
) -> None:
    images["b"][7, 1, 2] = value
    save(tmp_path, images)
    spec = spec_with_data(calibration=npz("a"), search=npz("b"))
    assert message_of(lambda: load_data(spec, IMAGE)) == (
        f"data.search.inputs.x: array 'b' of d.npz has {name}, first at index (7, 1, 2)"
    )


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        (np.ones((2, 3), np.float32), "int64", "holds float32, expected int64 for input 'x'"),
        (np.ones((2, 3), np.int64), "bool", "holds int64, expected bool for input 'x'"),
        (
            np.full((2, 3), 300),
            "uint8",
            "holds values from 300 to 300, which do not fit uint8 of input 'x'",
        ),
    ],
)
def test_numbers_that_would_lose_their_meaning_are_refused(
    tmp_path: Path, spec_with_data: Maker, values: Any, dtype: str, expected: str
) -> None:
    save(tmp_path, {"a": values})
    spec = spec_with_data(calibration=npz("a"), search=npz("a"))
    message = message_of(lambda: load_data(spec, [TensorSpec("x", dtype, (None, 3))]))
    assert message == f"data.calibration.inputs.x: array 'a' of d.npz {expected}"


def test_names_that_are_not_there_are_said(tmp_path: Path, spec_with_data: Maker, images: Arrays) -> None:
    save(tmp_path, images)
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "single.npy", images["a"])
    good = npz("b")
    here = tmp_path
    for source, expected in [
        (npz("z"), "data.search.inputs.x: d.npz has no array 'z', only a, b, c, a_y, b_y, c_y"),
        (npz("b", "z"), "data.search.labels: d.npz has no array 'z', only a, b, c, a_y, b_y, c_y"),
        (
            npz("b", model_input="y"),
            f"data.search: {here}/d.npz: the model has no input 'y', expected one of x",
        ),
        ({**good, "npz": "no.npz"}, f"data.search.npz: {here}/no.npz: no such file"),
        ({**good, "npz": "."}, f"data.search.npz: {here}: is a folder, expected an npz file"),
        ({**good, "npz": "text.npz"}, f"data.search.npz: {here}/text.npz: not an npz file, or a broken one"),
        (
            {**good, "npz": "empty.npz"},
            f"data.search.npz: {here}/empty.npz: not an npz file, or a broken one",
        ),
        (
            {**good, "npz": "single.npy"},
            f"data.search.npz: {here}/single.npy: expected an npz file, got a single array",
        ),
        (
            npz("b", "c_y"),
            "data.search.labels: array 'c_y' of d.npz has 6 examples, expected 10 as array 'b' of d.npz has",
        ),
    ]:
        spec = spec_with_data(calibration=npz("a"), search=source)
        assert message_of(lambda spec=spec: load_data(spec, IMAGE)) == expected  # type: ignore[misc]


def test_an_input_without_an_array_is_said(tmp_path: Path, spec_with_data: Maker) -> None:
    save(tmp_path, {"i": np.ones((2, 3), int)})
    spec = spec_with_data(calibration=npz("i", model_input="ids"), search=npz("i", model_input="ids"))
    message = message_of(lambda: load_data(spec, TOKENS))
    assert message == f"data.calibration: {tmp_path / 'd.npz'}: no array for model input 'mask'"


def test_a_truncated_file_is_refused(tmp_path: Path, spec_with_data: Maker, images: Arrays) -> None:
    save(tmp_path, images)
    path = tmp_path / "d.npz"
    content = bytearray(path.read_bytes())
    content[200:300] = bytes(100)
    path.write_bytes(content)
    spec = spec_with_data(calibration=npz("a"), search=npz("b"))
    assert message_of(lambda: load_data(spec, IMAGE)) == (
        "data.calibration.inputs.x: array 'a' of d.npz cannot be read, the file is broken"
    )
    path.write_bytes(bytes(content[:900]))
    assert message_of(lambda: load_data(spec, IMAGE)) == (
        f"data.calibration.npz: {path}: not an npz file, or a broken one"
    )


def test_a_transform_needs_an_input_of_floats(tmp_path: Path, spec_with_data: Maker) -> None:
    save(tmp_path, {"a": np.ones((2, 3), int), "b": np.zeros((2, 3), int)})
    sources = {"calibration": npz("a"), "search": npz("b")}
    spec = spec_with_data(**sources, transform={"y": {"scale": 2}})
    x = TensorSpec("x", "int64", (None, 3))
    assert message_of(lambda: load_data(spec, [x])) == "data.transform: the model has no input 'y', only x"
    spec = spec_with_data(**sources, transform={"x": {"scale": 2}})
    assert message_of(lambda: load_data(spec, [x])) == (
        "data.transform.x: gives float32, but the model's input takes int64"
    )


def test_top1_needs_one_whole_number_an_example(
    tmp_path: Path, spec_with_data: Maker, images: Arrays
) -> None:
    save(tmp_path, {**images, "soft": np.ones((10, 2), np.float32)})
    spec = spec_with_data("top1", calibration=npz("a"), search=npz("b"))
    assert message_of(lambda: load_data(spec, IMAGE)) == (
        "data.search: no labels, but metric top1 needs them (fidelity needs none)"
    )
    spec = spec_with_data("top1", calibration=npz("a"), search=npz("b", "soft"))
    assert message_of(lambda: load_data(spec, IMAGE)) == (
        "data.search: labels are float32 of shape (10, 2), "
        "expected one whole class number an example for metric top1"
    )
    assert load_data(spec.model_copy(update={"metric": "fidelity"}), IMAGE).search.labels is not None
