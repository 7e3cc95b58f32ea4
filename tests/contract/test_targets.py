from __future__ import annotations

import pytest

from autoq.evaluation.ports import Target
from autoq.targets.onnxruntime_cpu import OnnxRuntimeTarget
from autoq.testing.target_contract import TargetContract


class TestOnnxRuntimeTarget(TargetContract):
    @pytest.fixture(params=[(1, 1), (2, 3)], ids=["one thread", "two threads, batch 3"])
    def target(self, request: pytest.FixtureRequest) -> Target:
        threads, batch_size = request.param
        return OnnxRuntimeTarget(threads=threads, batch_size=batch_size)
