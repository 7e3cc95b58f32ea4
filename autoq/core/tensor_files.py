"""Tensors in safetensors files, written so that a full disk is an `OSError` like any other."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import save_file

_OS_ERROR = re.compile(r"\(os error ([0-9]+)\)")  # the only place where the writer says it


def save_tensors(
    tensors: Mapping[str, npt.NDArray[np.generic]], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write named arrays, for whoever may read what this process writes.

    Raises:
        OSError: The disk is full or refuses.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path, None if metadata is None else dict(metadata))
        path.chmod(mode)  # the writer puts a file in its place that is its owner's alone
    except SafetensorError as error:
        if (found := _OS_ERROR.search(str(error))) is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error
