from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autoq.calibration.statistics import (
    Extent,
    Statistics,
    load_channel_maxima,
    load_statistics,
    save_statistics,
    statistics_key,
)
from autoq.calibration.summaries import summarize
from autoq.core.errors import InfrastructureError

ENVIRONMENT = {"runtime_version": "1.2.3", "threads": 1}


@pytest.fixture
def statistics() -> Statistics:
    rng = np.random.default_rng(0)
    arrays = {"a/b:0": rng.standard_normal(100), "ä": -rng.uniform(size=7), "zero": np.zeros(3)}
    maxima = {"a/b:0": np.array([1.5, 0.0, 2.0], np.float32), "ä": np.array([0.25], np.float32)}
    summaries = {name: summarize(array) for name, array in arrays.items()}
    return Statistics(summaries, 17, 1.25, maxima, {"mask": 0.75}, {"ä": Extent(-2.5, 3.0, 99)})


def test_what_was_saved_is_loaded(statistics: Statistics, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "key.npz"
    save_statistics(statistics, path)
    loaded = load_statistics(path)
    assert loaded is not None
    assert (loaded.n_examples, loaded.seconds) == (17, 1.25)
    assert loaded.padding == {"mask": 0.75}
    assert loaded.padded == {"ä": Extent(-2.5, 3.0, 99)}
    assert loaded.extent("ä") == Extent(-2.5, 3.0, 99)
    assert loaded.extent("zero") == Extent(0.0, 0.0, 3)
    assert list(loaded.tensors) == list(statistics.tensors)
    for name, tensor in statistics.tensors.items():
        same = loaded.tensors[name]
        assert (same.low, same.high, same.exponent) == (tensor.low, tensor.high, tensor.exponent)
        np.testing.assert_array_equal(same.counts, tensor.counts)
    assert list(loaded.channel_maxima) == list(statistics.channel_maxima)
    for name, maxima in statistics.channel_maxima.items():
        assert loaded.channel_maxima[name].dtype == np.float32
        np.testing.assert_array_equal(loaded.channel_maxima[name], maxima)


def test_statistics_without_channel_maxima_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "key.npz"
    save_statistics(Statistics({"x": summarize(np.ones(3))}, 1, 0.5), path)
    loaded = load_statistics(path)
    assert loaded is not None
    assert loaded.channel_maxima == {}


def test_channel_maxima_are_read_alone_and_never_taken_for_none(
    statistics: Statistics, tmp_path: Path
) -> None:
    path = tmp_path / "key.npz"
    save_statistics(statistics, path)
    found = load_channel_maxima(path)
    assert {name: list(one) for name, one in found.items()} == {"a/b:0": [1.5, 0.0, 2.0], "ä": [0.25]}
    path.write_bytes(path.read_bytes()[:-40])
    for broken in (path, tmp_path / "missing.npz"):
        with pytest.raises(InfrastructureError, match="damaged"):
            load_channel_maxima(broken)


def test_saving_leaves_no_temporary_file(statistics: Statistics, tmp_path: Path) -> None:
    save_statistics(statistics, tmp_path / "key.npz")
    save_statistics(statistics, tmp_path / "key.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["key.npz"]


def test_a_missing_file_is_a_miss(tmp_path: Path) -> None:
    assert load_statistics(tmp_path / "nowhere.npz") is None


def test_a_file_cut_anywhere_is_a_miss(statistics: Statistics, tmp_path: Path) -> None:
    path = tmp_path / "key.npz"
    save_statistics(statistics, path)
    whole = path.read_bytes()
    for length in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert load_statistics(path) is None, length


def test_a_damaged_file_is_a_miss(statistics: Statistics, tmp_path: Path) -> None:
    path = tmp_path / "key.npz"
    save_statistics(statistics, path)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 3 : len(whole) // 3 + 40] = bytes(40)
    path.write_bytes(bytes(whole))
    assert load_statistics(path) is None


def test_another_file_is_a_miss(tmp_path: Path) -> None:
    path = tmp_path / "key.npz"
    np.savez(path, something=np.ones(3))
    assert load_statistics(path) is None
    path.write_text("hello")
    assert load_statistics(path) is None


def test_the_key_changes_with_model_data_and_runtime_alone() -> None:
    key = statistics_key("model", "data", ENVIRONMENT)
    assert key == statistics_key("model", "data", {**ENVIRONMENT, "threads": 8})
    others = {
        statistics_key("other", "data", ENVIRONMENT),
        statistics_key("model", "other", ENVIRONMENT),
        statistics_key("model", "data", {**ENVIRONMENT, "runtime_version": "1.2.4"}),
    }
    assert len({key, *others}) == 4
