"""ONNX Runtime's profile: which kernel took how long."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

# Layout and fusion passes append to a name: `relu_nchwc`, `fc/MatMulAddFusion`, `conv1_token_4`. Other
# slashes belong to a value, which a kernel in blocked layout is named after: `/layer1/Conv_output_0_nchwc`.
_APPENDED = re.compile(r"(_nchwc|_token_\d+|/\w+Fusion/?)+$")
_PREPENDED = "fused "  # to a Gemm with its activation


def kernel_seconds(events: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of one run by kernel, under the name of the node that it came from.

    The median over the runs: a single interruption once gave half of a model to one layer.
    """
    runs: defaultdict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            runs[event["name"]].append(float(event["dur"]) * 1e-6)
    spent: defaultdict[str, float] = defaultdict(float)
    for kernel, durations in runs.items():
        name = _APPENDED.sub("", kernel.removesuffix("_kernel_time")).removeprefix(_PREPENDED)
        spent[name] += float(np.median(durations))
    return dict(spent)
