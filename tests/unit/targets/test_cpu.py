from __future__ import annotations

from pathlib import Path

import pytest

from autoq.targets.cpu import Cpu, this_cpu


def write_cpuinfo(folder: Path, *lines: str) -> Path:
    path = folder / "cpuinfo"
    path.write_text("\n".join(lines) + "\n\nprocessor\t: 1\n" + lines[-1].replace("avx2", "amx_int8"))
    return path


def test_an_x86_cpu_is_read_from_its_first_core(tmp_path: Path) -> None:
    cpuinfo = write_cpuinfo(
        tmp_path, "processor\t: 0", "model name\t: Some CPU @ 2.0GHz", "flags\t\t: fpu avx2 avx512_vnni sse"
    )
    cpu = this_cpu(cpuinfo)
    assert cpu.model == "Some CPU @ 2.0GHz"
    assert cpu.instruction_sets == ("avx2", "avx512_vnni")
    assert cpu.n_cores >= 1


def test_an_arm_cpu_is_read_from_its_features(tmp_path: Path) -> None:
    cpu = this_cpu(write_cpuinfo(tmp_path, "processor\t: 0", "Features\t: fp asimd asimddp i8mm"))
    assert cpu.instruction_sets == ("asimddp", "i8mm")


def test_without_proc_the_instruction_sets_are_unknown(tmp_path: Path) -> None:
    cpu = this_cpu(tmp_path / "nowhere")
    assert cpu.instruction_sets == ()
    assert cpu.model


@pytest.mark.parametrize(
    ("architecture", "instruction_sets", "saturates"),
    [
        ("x86_64", ("avx2",), True),
        ("x86_64", ("avx2", "avx512f", "avx512bw"), True),
        ("x86_64", ("avx2", "avx_vnni"), False),
        ("x86_64", ("avx512_vnni",), False),
        ("aarch64", (), False),
    ],
)
def test_only_x86_without_dot_products_saturates(
    architecture: str, instruction_sets: tuple[str, ...], saturates: bool
) -> None:
    assert Cpu("some", architecture, instruction_sets, 2).saturates is saturates
