from __future__ import annotations

from pathlib import Path

import pytest

from autoq.core.files import written_whole


def test_what_was_written_takes_its_place_in_a_folder_that_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "index.json"
    with written_whole(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    with written_whole(path) as temporary:
        temporary.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_what_fails_half_way_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "index.json"
    path.write_text("old")

    def write_half() -> None:
        with written_whole(path) as temporary:
            temporary.write_text("ha")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
