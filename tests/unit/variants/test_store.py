from __future__ import annotations

import logging
import resource
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from autoq.core.choices import FLOAT, Choice
from autoq.core.layers import Layer
from autoq.variants.build import LayerBuilder
from autoq.variants.store import VariantStore
from autoq.variants.variant import Variant, WeightChoice

LAYERS = [Layer(f"layer{index}", "Gemm", (16, 24), channel_axis=0) for index in range(4)]
TIGHT_BYTES = 4000  # less than all variants take
CHOICES = [
    WeightChoice.of(choice)
    for choice in (
        FLOAT,
        Choice.of("int8"),
        Choice.of("int8", weight_bits=4, sparsity=0.5),
        Choice.of("int4_weight"),
    )
]


def draw_weights() -> dict[str, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return {layer.name: rng.standard_normal(layer.weight_shape).astype(np.float32) for layer in LAYERS}


def open_store(folder: Path, limit_bytes: int = 1 << 30, memory_bytes: int = 1 << 30) -> VariantStore:
    made = builders(LAYERS, draw_weights())
    return VariantStore(folder, made, limit_bytes=limit_bytes, memory_bytes=memory_bytes)


def builders(
    layers: Iterable[Layer], weights: Mapping[str, npt.NDArray[np.float32]]
) -> dict[str, LayerBuilder]:
    return {layer.name: LayerBuilder(layer, weights[layer.name]) for layer in layers}


def build_variant(layer: Layer, choice: WeightChoice) -> Variant:
    """What a store must return, without one."""
    [variant] = LayerBuilder(layer, draw_weights()[layer.name]).build([choice])
    return variant


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fill(folder: Path, limit_bytes: int = 1 << 30) -> None:
    store = open_store(folder, limit_bytes)
    for choice in CHOICES:
        found = store.get_all({layer.name: choice for layer in LAYERS})
        for layer in LAYERS:
            assert_same(found[layer.name], build_variant(layer, choice))


def assert_same(left: Variant, right: Variant) -> None:
    assert left.weights.tobytes() == right.weights.tobytes()
    assert left.scales.tobytes() == right.scales.tobytes()
    assert left.correction.tobytes() == right.correction.tobytes()
    assert left.bundle_bytes == right.bundle_bytes
    assert (left.error, left.relative_error) == (right.error, right.relative_error)


@pytest.mark.parametrize("choice", CHOICES)
def test_built_remembered_and_read_variants_are_the_same(choice: WeightChoice, tmp_path: Path) -> None:
    store = open_store(tmp_path)
    built = store.get("layer1", choice)
    assert store.get("layer1", choice) is built
    read = open_store(tmp_path).get("layer1", choice)
    assert read is not built
    assert_same(read, built)
    assert_same(built, build_variant(LAYERS[1], choice))


def test_get_all_returns_each_layer_its_own(tmp_path: Path) -> None:
    wanted = {layer.name: CHOICES[index] for index, layer in enumerate(LAYERS)}
    found = open_store(tmp_path).get_all(wanted)
    for layer in LAYERS:
        assert_same(found[layer.name], build_variant(layer, wanted[layer.name]))


def test_the_same_key_is_the_same_file_in_any_store(tmp_path: Path) -> None:
    fill(tmp_path / "one")
    fill(tmp_path / "two")
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_equal_weights_share_one_file(tmp_path: Path) -> None:
    weights: Mapping[str, npt.NDArray[np.float32]] = dict.fromkeys(
        (layer.name for layer in LAYERS), draw_weights()["layer0"]
    )
    VariantStore(tmp_path, builders(LAYERS, weights)).get_all({layer.name: CHOICES[1] for layer in LAYERS})
    assert len(files(tmp_path)) == 1


def test_weights_that_differ_in_the_axis_of_their_channels_share_nothing(tmp_path: Path) -> None:
    square = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    layers = [Layer("rows", "Gemm", (8, 8), channel_axis=0), Layer("columns", "MatMul", (8, 8), 1)]
    store = VariantStore(tmp_path, builders(layers, {"rows": square, "columns": square}))
    rows, columns = store.get("rows", CHOICES[1]), store.get("columns", CHOICES[1])
    assert rows.scales.tobytes() != columns.scales.tobytes()


@pytest.mark.parametrize("damage", [b"", b"hello", bytes(200)])
def test_a_damaged_file_is_built_again(damage: bytes, tmp_path: Path) -> None:
    whole = open_store(tmp_path).get("layer0", CHOICES[2])
    (path,) = tmp_path.rglob("*.safetensors")
    intact = path.read_bytes()
    path.write_bytes(damage)
    assert_same(open_store(tmp_path).get("layer0", CHOICES[2]), whole)
    assert path.read_bytes() == intact


def test_a_truncated_file_is_built_again(tmp_path: Path) -> None:
    whole = open_store(tmp_path).get("layer0", CHOICES[1])
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    assert_same(open_store(tmp_path).get("layer0", CHOICES[1]), whole)


def test_build_all_builds_what_is_missing_and_says_how_much(tmp_path: Path) -> None:
    wanted = [(layer.name, choice) for layer in LAYERS for choice in CHOICES]
    store = open_store(tmp_path)
    assert store.build_all(wanted[:3]) == 3
    progress: list[tuple[int, int]] = []
    assert store.build_all(wanted, lambda done, total: progress.append((done, total))) == len(wanted) - 3
    assert progress[-1] == (len(wanted) - 3, len(wanted) - 3)
    assert open_store(tmp_path).build_all(wanted) == 0


def test_two_processes_may_fill_one_folder_at_once(tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(tmp_path / "shared")]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    fill(tmp_path / "alone")
    assert files(tmp_path / "shared") == files(tmp_path / "alone")


def test_two_processes_with_too_little_disk_still_get_every_variant(tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(tmp_path / "shared"), str(TIGHT_BYTES)]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    fill(tmp_path / "alone")
    whole = files(tmp_path / "alone")
    left = files(tmp_path / "shared")
    assert left.items() <= whole.items()
    assert 0 < len(left) < len(whole)


def test_no_variant_of_one_call_makes_room_for_another(tmp_path: Path) -> None:
    open_store(tmp_path, limit_bytes=1).get_all({layer.name: CHOICES[1] for layer in LAYERS})
    assert len(files(tmp_path)) == len(LAYERS)


def test_a_variant_that_another_process_removed_is_built_again(tmp_path: Path) -> None:
    store, other = open_store(tmp_path), open_store(tmp_path)
    whole = store.get("layer0", CHOICES[1])
    store.build_all([("layer0", CHOICES[1])])
    for path in tmp_path.rglob("*.safetensors"):
        path.unlink()
    assert_same(other.get("layer0", CHOICES[1]), whole)
    assert len(files(tmp_path)) == 1


def test_a_full_disk_is_said_once_and_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(tmp_path), "full"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("variants are not kept on disk") == 1
    assert files(tmp_path) == {}


def fill_a_full_disk(folder: Path) -> None:
    """Build variants where no file may become longer than a few bytes, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    logging.basicConfig()
    store = open_store(folder)
    for choice in CHOICES:
        for layer, variant in store.get_all({layer.name: choice for layer in LAYERS}).items():
            assert_same(variant, build_variant(LAYERS[int(layer[-1])], choice))
    assert store.build_all([("layer0", choice) for choice in CHOICES]) == len(CHOICES)


def test_memory_keeps_the_most_recently_used(tmp_path: Path) -> None:
    size = open_store(tmp_path).get("layer0", CHOICES[0]).nbytes
    store = open_store(tmp_path, memory_bytes=2 * size)
    first = store.get("layer0", CHOICES[0])
    second = store.get("layer1", CHOICES[0])
    assert store.get("layer0", CHOICES[0]) is first  # now the more recent one
    store.get("layer2", CHOICES[0])
    assert store.get("layer0", CHOICES[0]) is first
    again = store.get("layer1", CHOICES[0])
    assert again is not second
    assert_same(again, second)


def test_a_candidate_larger_than_the_memory_still_gets_all_its_variants(tmp_path: Path) -> None:
    found = open_store(tmp_path, memory_bytes=1).get_all({layer.name: CHOICES[1] for layer in LAYERS})
    assert set(found) == {layer.name for layer in LAYERS}


def test_a_changed_byte_is_a_miss(tmp_path: Path) -> None:
    good = open_store(tmp_path).get("layer0", CHOICES[1])
    [path] = list(tmp_path.rglob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)
    assert_same(open_store(tmp_path).get("layer0", CHOICES[1]), good)


if __name__ == "__main__":  # one of the two processes of a test above
    target, limit = Path(sys.argv[1]), sys.argv[2:]
    if limit == ["full"]:
        fill_a_full_disk(target)
    else:
        fill(target, *map(int, limit))
