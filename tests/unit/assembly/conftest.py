from __future__ import annotations

from collections.abc import Callable
from functools import cache

import onnx
import pytest

from autoq.testing.bench import ModelBench, build_bench

BenchOf = Callable[[Callable[[], onnx.ModelProto]], ModelBench]


@pytest.fixture(scope="session")
def bench_of(tmp_path_factory: pytest.TempPathFactory) -> BenchOf:
    """Benches of tiny models by their builder, each calibrated once."""

    @cache
    def bench(build: Callable[[], onnx.ModelProto]) -> ModelBench:
        return build_bench(build(), tmp_path_factory.mktemp("bench"))

    return bench
