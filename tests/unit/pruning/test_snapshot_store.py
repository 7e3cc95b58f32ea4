from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autoq.core.errors import InfrastructureError
from autoq.core.groups import ChannelGroup, GroupKind, Member, Role
from autoq.pruning.consumers import Consumer
from autoq.pruning.snapshot_store import SnapshotStore, snapshots_key
from autoq.pruning.widths import GroupSnapshots, build_snapshots


def group_of(name: str) -> ChannelGroup:
    channels = tuple((unit,) for unit in range(6))
    return ChannelGroup(name, 6, GroupKind.CHANNELS, (Member("fc|odd", Role.READS, channels),))


def snapshots_of(name: str) -> GroupSnapshots:
    rng = np.random.default_rng(0)
    consumers = []
    for row_group in (0, 1):
        vectors = rng.standard_normal((80, 6)) + 1.0
        half = (vectors.T @ vectors / 80).astype(np.float32)
        weight = rng.standard_normal((3, 6)).astype(np.float32)
        columns = np.arange(6)
        mean = vectors.mean(axis=0).astype(np.float32)
        consumers.append(Consumer("fc|odd", row_group, columns, columns, weight, (half, half), 0.5, mean))
    return build_snapshots(group_of(name), consumers, rng.permutation(6), [2, 4])


def test_snapshots_come_back_as_they_were(tmp_path: Path) -> None:
    store, written = SnapshotStore(tmp_path / "new"), {name: snapshots_of(name) for name in ("a/b", "c")}
    store.save(written)
    found = store.load([group_of("c"), group_of("a/b"), group_of("other")])
    assert found is not None
    assert found.keys() == written.keys()
    for name, group in written.items():
        np.testing.assert_array_equal(found[name].order, group.order)
        assert found[name].widths == group.widths
        for width in group.widths:
            one, other = group.at(width), found[name].at(width)
            assert (one.group, one.kept, one.error) == (other.group, other.kept, other.error)
            assert one.refits.keys() == other.refits.keys()
            for layer, parts in one.refits.items():
                for part, copy in zip(parts, other.refits[layer], strict=True):
                    assert part.row_group == copy.row_group
                    for field in ("columns", "weight", "bias", "error", "variance"):
                        np.testing.assert_array_equal(getattr(part.refit, field), getattr(copy.refit, field))
                    np.testing.assert_array_equal(part.replaced, copy.replaced)


def test_without_an_index_or_with_a_file_missing_there_are_none(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    assert store.load([group_of("a")]) is None
    store.save({"a": snapshots_of("a")})
    assert store.load([group_of("another")]) is None
    next(tmp_path.glob("*.safetensors")).unlink()
    assert store.load([group_of("a")]) is None


def test_a_damaged_file_is_said_when_it_is_read(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    store.save({"a": snapshots_of("a")})
    found = store.load([group_of("a")])
    assert found is not None
    for path in tmp_path.glob("*.2.safetensors"):
        content = bytearray(path.read_bytes())
        content[-3] ^= 0xFF
        path.write_bytes(bytes(content))
    assert found["a"].at(4).width == 4
    with pytest.raises(InfrastructureError, match="'a' is damaged"):
        found["a"].at(2)


def test_the_key_depends_on_everything_that_changes_snapshots() -> None:
    keys = {
        snapshots_key("one", {"multiple": 16}),
        snapshots_key("two", {"multiple": 16}),
        snapshots_key("one", {"multiple": 8}),
    }
    assert len(keys) == 3
    assert snapshots_key("one", {"a": 1, "b": 2}) == snapshots_key("one", {"b": 2, "a": 1})
