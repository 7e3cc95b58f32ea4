from __future__ import annotations

from typing import Any

import pytest

from autoq.targets.kernel_events import kernel_seconds


def event(name: str, microseconds: int, cat: str = "Node") -> dict[str, Any]:
    return {"cat": cat, "name": name, "dur": microseconds}


@pytest.mark.parametrize(
    ("kernel", "node"),
    [
        ("conv1", "conv1"),
        ("conv1_nchwc", "conv1"),
        ("relu_token_4", "relu"),
        ("relu_nchwc_token_12", "relu"),
        ("fc/MatMulAddFusion", "fc"),
        ("fc/MatMulAddFusion_nchwc", "fc"),
        ("matmul_12/MatMulScaleFusion/", "matmul_12"),
        ("fused fc1", "fc1"),
        ("layer1.0.conv2", "layer1.0.conv2"),
        ("/layer1/Conv_output_0_nchwc", "/layer1/Conv_output_0"),
        ("a_token_x", "a_token_x"),
        ("token_4th", "token_4th"),
    ],
)
def test_what_passes_add_to_a_name_is_taken_off_and_no_more(kernel: str, node: str) -> None:
    assert kernel_seconds([event(f"{kernel}_kernel_time", 250)]) == {node: pytest.approx(250e-6)}


def test_only_kernels_of_nodes_are_counted() -> None:
    events = [
        event("conv_fence_before", 10),
        event("conv_kernel_time", 100),
        event("conv_fence_after", 10),
        event("model_run", 900, "Session"),
        event("conv_kernel_time", 900, "Session"),
        {"name": "process_name", "ph": "M"},
    ]
    assert kernel_seconds(events) == {"conv": pytest.approx(100e-6)}


def test_a_single_interruption_does_not_decide_what_a_kernel_takes() -> None:
    runs = [event("conv_kernel_time", dur) for dur in (100, 102, 50_000, 98, 101)]
    assert kernel_seconds(runs) == {"conv": pytest.approx(101e-6)}


def test_kernels_that_came_from_one_node_are_added_up() -> None:
    runs = [event(name, 100) for name in ("fc_kernel_time", "fc/MatMulAddFusion_kernel_time")] * 3
    assert kernel_seconds(runs) == {"fc": pytest.approx(200e-6)}


def test_no_events_are_no_seconds() -> None:
    assert kernel_seconds([]) == {}
