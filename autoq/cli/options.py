"""Options that several commands share."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

DEFAULT_HOME = Path("autoq-home")

HomeOption = Annotated[
    Path,
    typer.Option(
        "--home",
        metavar="DIR",
        envvar="AUTOQ_HOME",
        help="Folder of stores, artifacts, caches and log.",
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON object on stdout and everything else on stderr. Default: no."
    ),
]
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of a search; `autoq list` shows them.")
]


def home_arguments(home: Path) -> list[str]:
    """Return the words that name a home in a command, quoted; none where it goes without saying."""
    default = Path(os.environ.get("AUTOQ_HOME") or DEFAULT_HOME)
    return [] if home == default else ["--home", shlex.quote(str(home))]
