from __future__ import annotations

from pathlib import Path

from autoq.home import Home


def test_whatever_is_built_again_lies_in_the_cache(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "home")
    for path in (home.model("abc"), home.statistics("abc"), home.variants, home.outputs):
        assert path.is_relative_to(home.cache)
