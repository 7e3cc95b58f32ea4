from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from autoq.calibration.moment_store import MomentStore
from autoq.calibration.moments import MomentAccumulator, Moments, column_blocks


def make(groups: int, columns: int, *, widest: int = 8192, seed: int = 0) -> Moments:
    rng = np.random.default_rng(seed)
    sums = MomentAccumulator(groups, column_blocks(columns, whole=widest, widest=widest))
    for half in (0, 1):
        sums.add(half, rng.standard_normal((groups, 40 + half, columns)).astype(np.float32))
    moments = sums.finish()
    assert moments is not None
    return moments


def arrays_of(moments: Moments) -> list[npt.NDArray[np.float32]]:
    return [*moments.halves[0], *moments.halves[1], moments.mean]


def assert_identical(left: Moments, right: Moments) -> None:
    assert left.n_rows == right.n_rows
    for a, b in zip(arrays_of(left), arrays_of(right), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("groups", "columns", "widest"), [(1, 7, 8192), (16, 9, 8192), (1, 1, 8192), (2, 11, 4), (1, 600, 8192)]
)
def test_what_was_saved_is_read_bit_for_bit(tmp_path: Path, groups: int, columns: int, widest: int) -> None:
    moments = make(groups, columns, widest=widest)
    store = MomentStore(tmp_path / "deep")
    store.save("k", moments)
    store.save_index({"layer": "k"})
    found = MomentStore(tmp_path / "deep").get("layer")
    assert found is not None
    assert_identical(found, moments)
    assert found.blocks == moments.blocks


def test_layers_with_the_same_key_share_a_file(tmp_path: Path) -> None:
    store = MomentStore(tmp_path)
    store.save("k", make(1, 5))
    store.save_index({"q": "k", "v": "k"})
    assert store.key("q") == store.key("v") == "k"
    q, v = store.get("q"), store.get("v")
    assert q is not None
    assert v is not None
    assert_identical(q, v)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k.safetensors", "layers.json"]


def test_only_upper_triangles_are_kept_on_disk(tmp_path: Path) -> None:
    store = MomentStore(tmp_path)
    store.save("k", make(1, 400))
    assert (tmp_path / "k.safetensors").stat().st_size < 2 * 4 * 400 * 401 / 2 + 4 * 400 + 1000


def test_an_unknown_layer_has_no_moments(tmp_path: Path) -> None:
    assert MomentStore(tmp_path / "nowhere").get("layer") is None
    assert MomentStore(tmp_path / "nowhere").key("layer") is None
    store = MomentStore(tmp_path)
    store.save_index({"layer": "gone"})
    assert store.get("other") is None
    assert store.get("layer") is None


def test_a_store_is_complete_once_its_index_and_all_files_are_there(tmp_path: Path) -> None:
    store = MomentStore(tmp_path)
    assert not store.is_complete
    store.save("k", make(1, 5))
    assert not store.is_complete
    store.save_index({"layer": "k"})
    assert store.is_complete
    (tmp_path / "k.safetensors").unlink()
    assert not store.is_complete


def test_a_store_without_moments_is_complete(tmp_path: Path) -> None:
    MomentStore(tmp_path).save_index({})
    assert MomentStore(tmp_path).is_complete


def test_a_file_cut_anywhere_is_a_miss(tmp_path: Path) -> None:
    store = MomentStore(tmp_path)
    store.save("k", make(1, 9))
    store.save_index({"layer": "k"})
    path = tmp_path / "k.safetensors"
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert store.get("layer") is None, length
    path.write_bytes(whole)
    assert store.get("layer") is not None


def test_a_changed_byte_is_a_miss(tmp_path: Path) -> None:
    store = MomentStore(tmp_path)
    store.save("k", make(1, 9))
    store.save_index({"layer": "k"})
    path = tmp_path / "k.safetensors"
    whole = path.read_bytes()
    for position in (len(whole) // 2, len(whole) * 3 // 4, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(bytes(damaged))
        assert store.get("layer") is None, position


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00"])
def test_a_broken_index_is_a_miss(tmp_path: Path, content: str) -> None:
    (tmp_path / "layers.json").write_text(content)
    store = MomentStore(tmp_path)
    assert store.get("layer") is None
    assert not store.is_complete


def test_an_index_that_is_written_again_is_read_again(tmp_path: Path) -> None:
    store = MomentStore(tmp_path)
    assert store.key("layer") is None
    store.save_index({"layer": "k"})
    assert store.key("layer") == "k"


def test_moments_lie_beside_their_statistics(tmp_path: Path) -> None:
    MomentStore.beside(tmp_path / "abc.npz").save_index({})
    assert (tmp_path / "abc.moments" / "layers.json").exists()
