"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY = ".tmp"  # what the names of unfinished files end in
_OF_SAFETENSORS = ".tmp"  # what the names begin with of files that safetensors has not finished
_ABANDONED_S = 3600.0  # an unfinished file this old belongs to a process that died


def is_unfinished(path: Path) -> bool:
    """Whether a file's name says that somebody is writing it, or has died over it."""
    return path.suffix == TEMPORARY or path.name.startswith(_OF_SAFETENSORS)


def is_abandoned(stat: os.stat_result) -> bool:
    """Whether whoever wrote to an unfinished file must have died."""
    return time.time() - stat.st_mtime > _ABANDONED_S


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a file beside `path` to write to; it takes the place of `path` if all goes well, and goes if not.

    The folder is made if it is missing. Of two writers the later one has the last word.

    Raises:
        OSError: The disk is full or refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:  # raised again: an interrupt too may leave no half-written file behind
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
