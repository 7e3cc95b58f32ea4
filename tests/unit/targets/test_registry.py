from __future__ import annotations

from dataclasses import dataclass

import pytest

from autoq.core.errors import SpecError, UnknownNameError
from autoq.targets.registry import create_target


@dataclass
class Settings:
    runtime: str = "onnxruntime"
    device: str = "cpu"
    threads: int = 2
    batch_size: int = 4


def test_the_named_target_is_built_with_its_settings() -> None:
    target = create_target(Settings())
    assert target.name == "onnxruntime-cpu-2t-b4"
    assert target.batch_size == 4


def test_an_unknown_runtime_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"target\.runtime: no runtime named 'tensorrt'.*onnxruntime"):
        create_target(Settings(runtime="tensorrt"))


def test_an_unknown_device_is_refused_with_its_key() -> None:
    with pytest.raises(SpecError, match=r"target\.device: .*'cuda', expected cpu"):
        create_target(Settings(device="cuda"))
