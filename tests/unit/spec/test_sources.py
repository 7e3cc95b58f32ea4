import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from autoq.core.errors import DataError, SpecError
from autoq.core.layers import TensorSpec
from autoq.core.python_objects import load_object
from autoq.spec.data import load_data, read_ahead
from autoq.spec.schema import PythonSource, SearchSpec
from autoq.spec.sources import read_source

Maker = Callable[..., SearchSpec]

FACTORIES = """\
import numpy as np

calls = []

def _batches(start):
    calls.append(start)
    for number, length in enumerate((3, 5)):
        ids = np.arange(2 * length).reshape(2, length) + start + 100 * number
        yield {"ids": ids, "mask": np.ones_like(ids)}, np.array([number, number + 1])

def calibration():
    return _batches(0)

def search():
    return _batches(1000)

def reused_buffer():
    buffer = np.zeros((2, 3))
    for value in (1, 2):
        buffer[:] = value
        yield {"x": buffer}, None

def tensors():
    import torch
    return [({"x": torch.ones(2, 3)}, torch.zeros(2, dtype=torch.int64))]

def nothing():
    return []

def number():
    return 7

def lonely():
    return [{"x": np.ones(3)}]

def unnamed():
    return [(np.ones(3), None)]

def ragged():
    return [({"x": [[1], [2, 3]]}, None)]

def raises_at_once():
    raise KeyError("no disk")

def raises_later():
    yield {"x": np.ones((2, 3))}, None
    raise OSError("disk on\\n fire")

def wants_more(folder):
    return []

def nan():
    yield {"x": np.ones((2, 3))}, None
    yield {"x": np.array([[0, 1, 2], [3, 4, np.nan]])}, None

def half_labelled():
    yield {"x": np.ones((2, 3))}, np.ones(2, int)
    yield {"x": np.zeros((2, 3))}, None
"""

TOKENS = (TensorSpec("ids", "int64", ("batch", "seq")), TensorSpec("mask", "int64", ("batch", "seq")))
ROWS = (TensorSpec("x", "float32", (None, 3)),)


@pytest.fixture
def factories(tmp_path: Path) -> Path:
    path = tmp_path / "factories.py"
    path.write_text(FACTORIES)
    return path


def test_a_factory_of_ragged_batches_is_read_once(factories: Path, spec_with_data: Maker) -> None:
    sources = {name: {"python": f"factories.py:{name}"} for name in ("calibration", "search")}
    data = load_data(spec_with_data("top1", **sources), TOKENS)
    assert [batch.inputs["ids"].shape for batch in data.search.batches] == [(2, 3), (2, 5)]
    assert data.search.labels is not None
    assert data.search.labels.tolist() == [0, 1, 1, 2]
    assert load_object(f"{factories}:calls") == [0, 1000]


def test_a_ragged_set_is_dealt_out_across_its_batches(factories: Path, spec_with_data: Maker) -> None:
    spec = spec_with_data(
        calibration={"python": "factories.py:calibration"},
        labelled={"python": "factories.py:search"},
        split={"search": 0.5, "test": 0.5},
    )
    data = load_data(spec, TOKENS)
    assert data.test is not None
    firsts = {int(row[0]) for s in (data.search, data.test) for b in s.batches for row in b.inputs["ids"]}
    assert firsts == {1000, 1003, 1100, 1105}
    assert data.warnings == ()


def test_files_are_read_ahead_and_the_users_code_runs_where_it_is_asked_for(
    tmp_path: Path, spec_with_data: Maker
) -> None:
    (tmp_path / "noting.py").write_text(
        "import threading, numpy as np\nthreads = []\n"
        "def search():\n    threads.append(threading.get_ident())\n"
        "    return [({'ids': np.ones((2, 3), int), 'mask': np.ones((2, 3), int)}, None)]\n"
    )
    tokens = np.arange(12).reshape(4, 3)
    np.savez(tmp_path / "d.npz", ids=tokens, mask=tokens)
    files = {"npz": "d.npz", "inputs": {"ids": "ids", "mask": "mask"}}
    spec = spec_with_data(calibration=files, search={"python": "noting.py:search"})
    read = read_ahead(spec.data)
    wanted = load_data(spec, TOKENS)
    deadline = time.monotonic() + 20
    while read_ahead_is_running() and time.monotonic() < deadline:
        time.sleep(0.01)
    (tmp_path / "d.npz").unlink()  # it has been read
    data = load_data(spec, TOKENS, read)
    assert data.calibration.digest == wanted.calibration.digest
    assert data.search.digest == wanted.search.digest
    assert load_object(f"{tmp_path / 'noting.py'}:threads") == 2 * [threading.get_ident()]


def read_ahead_is_running() -> bool:
    return any(thread.name.startswith("autoq-ahead") for thread in threading.enumerate())


def test_what_cannot_be_read_ahead_is_told_when_it_is_asked_for(spec_with_data: Maker) -> None:
    files = {"npz": "none.npz", "inputs": {"ids": "ids", "mask": "mask"}}
    spec = spec_with_data(calibration=files, search=files)
    read = read_ahead(spec.data)
    with pytest.raises(DataError, match=r"data\.calibration\.npz: .*none\.npz: no such file"):
        load_data(spec, TOKENS, read)


def test_arrays_are_copied_as_they_come(factories: Path) -> None:
    first, second = read_source(PythonSource(python=f"{factories}:reused_buffer"), where="data.search")
    assert first.inputs["x"].values[0, 0] == 1
    assert second.inputs["x"].values[0, 0] == 2


def test_torch_tensors_are_taken(factories: Path) -> None:
    (batch,) = read_source(PythonSource(python=f"{factories}:tensors"), where="data.search")
    assert batch.labels is not None
    np.testing.assert_array_equal(batch.inputs["x"].values, np.ones((2, 3)))
    assert batch.labels.values.dtype == np.int64


BAD = [
    ("nothing", "data.search: the factory gave no batches, expected at least one"),
    ("number", "data.search: {ref} returned a int, expected an iterable of (inputs, labels)"),
    ("lonely", "data.search: batch 0 of {ref}: expected a pair (inputs, labels), got a dict"),
    (
        "unnamed",
        "data.search: batch 0 of {ref}: expected inputs as a mapping of name to array, got a ndarray",
    ),
    ("ragged", "data.search: batch 0 of {ref}: input 'x': expected an array, got a list of 2"),
    ("raises_at_once", "data.search: {ref} raised KeyError: 'no disk'"),
    ("raises_later", "data.search: {ref} raised OSError: disk on fire"),
    (
        "wants_more",
        "data.search: {ref} raised TypeError: wants_more() missing 1 required positional argument: 'folder'",
    ),
    ("nan", "data.search: batch 1 of {ref}: input 'x' has NaN, first at index (1, 2)"),
    ("half_labelled", "data.search: batch 1 has no labels, expected labels of shape (n) as batch 0 has"),
]


@pytest.mark.parametrize(("function", "expected"), BAD, ids=[function for function, _ in BAD])
def test_a_factory_that_gives_something_else_is_named(
    factories: Path, spec_with_data: Maker, function: str, expected: str
) -> None:
    source = {"python": f"factories.py:{function}"}
    spec = spec_with_data(calibration={"python": "factories.py:reused_buffer"}, search=source)
    with pytest.raises(DataError) as caught:
        load_data(spec, ROWS)
    assert str(caught.value) == expected.format(ref=f"{factories}:{function}")


def test_a_factory_that_is_not_there_is_a_mistake_in_the_spec(factories: Path) -> None:
    with pytest.raises(SpecError) as caught:
        read_source(PythonSource(python=f"{factories}:no"), where="data.search")
    assert str(caught.value) == f"data.search.python: {factories}:no: {factories} has no 'no'"
