from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from autoq.variants.shelf import Shelf

LIMIT = 10_000


def keys_of(folder: Path) -> set[str]:
    return {path.stem for path in folder.rglob("*.bin")}


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def writing(n_bytes: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(bytes(n_bytes))


def open_shelf(folder: Path, limit: int = LIMIT) -> Shelf:
    return Shelf(folder, ".bin", limit_bytes=limit)


def age(shelf: Shelf, key: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(shelf.path(key), (then, then))


def fill(folder: Path, n_files: int, n_bytes: int) -> None:
    """Write files that look the older the lower their number."""
    shelf = open_shelf(folder, limit=1 << 40)
    for number in range(n_files):
        shelf.save(f"{number:04d}", writing(n_bytes))
        age(shelf, f"{number:04d}", 10_000 - number)


def test_a_file_is_found_under_its_key(tmp_path: Path) -> None:
    shelf = open_shelf(tmp_path)
    assert not shelf.has("abcd")
    shelf.save("abcd", writing(10))
    assert shelf.has("abcd")
    assert open_shelf(tmp_path).path("abcd").read_bytes() == bytes(10)


def test_the_oldest_make_room_until_nine_tenths_of_the_limit_are_left(tmp_path: Path) -> None:
    fill(tmp_path, 10, 1000)
    open_shelf(tmp_path).save("new", writing(1))
    assert keys_of(tmp_path) == {"new", *(f"{number:04d}" for number in range(2, 10))}


def test_below_the_limit_nothing_goes(tmp_path: Path) -> None:
    fill(tmp_path, 9, 1000)
    open_shelf(tmp_path).save("new", writing(1000))
    assert len(keys_of(tmp_path)) == 10


def test_what_has_been_used_stays_longer(tmp_path: Path) -> None:
    fill(tmp_path, 10, 1000)
    shelf = open_shelf(tmp_path)
    with shelf.using(["0000"]):
        pass
    assert shelf.has("0001")
    shelf.save("new", writing(1))
    assert keys_of(tmp_path) == {"new", "0000", "0001", *(f"{number:04d}" for number in range(4, 10))}


def test_a_file_is_marked_as_used_once_an_hour(tmp_path: Path) -> None:
    fill(tmp_path, 1, 10)
    shelf = open_shelf(tmp_path)
    shelf.has("0000")
    marked = shelf.path("0000").stat().st_mtime
    assert time.time() - marked < 60
    age(shelf, "0000", 5000)
    shelf.has("0000")
    assert shelf.path("0000").stat().st_mtime < marked


def test_what_is_in_use_does_not_make_room_however_full_it_gets(tmp_path: Path) -> None:
    shelf = open_shelf(tmp_path)
    wanted = [f"{number:04d}" for number in range(30)]
    with shelf.using(wanted):
        for key in wanted:
            shelf.save(key, writing(1000))
        shelf.save("other", writing(1000))
        assert keys_of(tmp_path) == {*wanted, "other"}
    for number in range(2):  # one may still fit into what was written ahead
        shelf.save(f"later{number}", writing(1000))
    assert size_of(tmp_path) <= LIMIT


def test_a_file_larger_than_the_limit_is_kept_until_the_next(tmp_path: Path) -> None:
    shelf = open_shelf(tmp_path)
    shelf.save("huge", writing(3 * LIMIT))
    assert shelf.has("huge")
    age(shelf, "huge", 100)
    shelf.save("next", writing(LIMIT // 2))
    assert keys_of(tmp_path) == {"next"}


def test_at_random_it_keeps_what_an_obvious_list_would_keep(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shelf = open_shelf(tmp_path)
    kept: dict[str, int] = {}  # oldest first
    for step in range(200):
        key, n_bytes = f"{step:04d}", int(rng.integers(1, 2000))
        shelf.save(key, writing(n_bytes))
        age(shelf, key, 10_000 - step)
        kept[key] = n_bytes
        if sum(kept.values()) > LIMIT:
            while sum(kept.values()) > 0.9 * LIMIT:
                kept.pop(next(iter(kept)))
        assert keys_of(tmp_path) == set(kept)


def test_the_folder_is_not_looked_at_for_every_file(tmp_path: Path) -> None:
    shelf = open_shelf(tmp_path, limit=1_000_000)
    shelf.save("0000", writing(10))
    abandoned = tmp_path / "00" / "0001.bin.tmp"
    abandoned.touch()
    os.utime(abandoned, (0, 0))
    for number in range(1, 50):
        shelf.save(f"{number:04d}", writing(10))
    assert abandoned.exists()  # a look would have removed it
    shelf.save("last", writing(200_000))
    assert not abandoned.exists()


def test_what_a_process_that_died_left_behind_goes_and_what_one_writes_stays(tmp_path: Path) -> None:
    fill(tmp_path, 1, 10)
    old, young = tmp_path / "00" / "0001.bin.tmp", tmp_path / "00" / "0002.bin.tmp"
    for path in (old, young):
        path.touch()
    os.utime(old, (0, 0))
    open_shelf(tmp_path).save("new", writing(1))
    assert not old.exists()
    assert young.exists()


def test_what_other_processes_write_counts_after_a_tenth_of_the_limit(tmp_path: Path) -> None:
    ours, theirs = open_shelf(tmp_path), open_shelf(tmp_path)
    ours.save("ours0", writing(10))
    theirs.save("theirs", writing(9_000))
    age(theirs, "theirs", 100)
    ours.save("ours1", writing(990))
    ours.save("ours2", writing(20))
    assert keys_of(tmp_path) == {"ours0", "ours1", "ours2"}


def test_a_write_that_fails_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    shelf = open_shelf(tmp_path)
    shelf.save("abcd", writing(10))

    def fail(path: Path) -> None:
        path.write_bytes(bytes(5))
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        shelf.save("abcd", fail)
    assert size_of(tmp_path) == 10


def test_many_threads_may_write_and_make_room_at_once(tmp_path: Path) -> None:
    shelf = open_shelf(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: shelf.save(f"{number % 60:04d}", writing(997)), range(240)))
    assert 0 < size_of(tmp_path) <= LIMIT
    assert not list(tmp_path.rglob("*.tmp"))


def test_two_processes_that_make_room_leave_whole_files_within_the_limit(tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(tmp_path)]
    both = [subprocess.Popen([*command, str(seed)]) for seed in range(2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert 0 < size_of(tmp_path) <= LIMIT + 2 * LIMIT // 10
    assert not list(tmp_path.rglob("*.tmp"))


def write_and_read(folder: Path, seed: int) -> None:
    """What each of two processes does: whatever it finds is whole."""
    shelf, rng = open_shelf(folder), np.random.default_rng(seed)
    for number in rng.integers(0, 40, 600):
        key = f"{number:04d}"
        try:
            assert len(shelf.path(key).read_bytes()) == 500 + number
        except FileNotFoundError:
            shelf.save(key, writing(500 + int(number)))


if __name__ == "__main__":  # one of the two processes of a test above
    write_and_read(Path(sys.argv[1]), int(sys.argv[2]))
