"""A bundle as safetensors: every tensor as an array that its readers understand, not compressed.

The file around the weights is the tensor `autoq_skeleton`, under zstd; the layout is in the metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from autoq.core.coders import Bytes
from autoq.core.tensor_files import save_tensors
from autoq.export.bundle_content import DamagedBundle, Layout, restore
from autoq.export.plain_tensors import (
    SKELETON,
    SkeletonReader,
    array_type,
    pack_skeleton,
    tensor_names,
    to_array,
    to_content,
)
from autoq.graph.onnx_spans import skeleton_of

_LAYOUT = "autoq_bundle"


def write_safetensors(content: memoryview, path: Path) -> None:
    """Write an ONNX file's tensors and what is around them.

    Raises:
        ModelError: It is none, or one that keeps weights in other files.
        OSError: The file cannot be written.
    """
    layout = Layout.of(content)
    names = tensor_names(layout)
    arrays = {name: to_array(s, s.of(content)) for name, s in zip(names, layout.spans, strict=True)}
    arrays[SKELETON] = np.frombuffer(pack_skeleton(skeleton_of(content, layout.spans)), np.uint8)
    save_tensors(arrays, path, {_LAYOUT: json.dumps(layout.to_json())})


def restore_safetensors(path: Path, out: BinaryIO) -> None:
    """Write the ONNX file that a bundle was made from.

    Raises:
        DamagedBundle: It is not what autoq wrote.
        OSError: A file cannot be read or written.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            _restore(file, path.stat().st_size, out)
    except (SafetensorError, UnicodeDecodeError) as error:
        raise DamagedBundle(str(error)) from error


def _restore(file: Any, size: int, out: BinaryIO) -> None:
    try:
        content = json.loads((file.metadata() or {})[_LAYOUT])
    except (KeyError, ValueError, RecursionError) as error:
        raise DamagedBundle("it has no layout that autoq wrote") from error
    layout = Layout.from_json(content, bundle_size=size)
    names = tensor_names(layout)
    if set(file.keys()) != {*names, SKELETON}:
        raise DamagedBundle("its tensors are not those of its layout")

    def read(number: int) -> Iterator[Bytes]:
        span = layout.spans[number]
        array = file.get_tensor(names[number])
        if (array.dtype, array.shape) != array_type(span):
            raise DamagedBundle(f"tensor {span.name!r} is {array.dtype} of shape {array.shape}")
        return to_content(span, array)

    skeleton = SkeletonReader(file.get_tensor(SKELETON).tobytes())
    restore(layout, skeleton.read, read, out)
