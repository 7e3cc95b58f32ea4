"""What the CPU of this machine is, as far as quantised arithmetic is concerned."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

# Flags of /proc/cpuinfo (x86) and Features (Arm) that decide which integer kernels run.
_INTERESTING = (
    "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
_DOT_PRODUCT = {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"}


@dataclass(frozen=True, slots=True)
class Cpu:
    """A CPU by name, with the instruction sets that matter."""

    model: str
    architecture: str
    instruction_sets: tuple[str, ...]
    n_cores: int

    @property
    def saturates(self) -> bool:
        """Whether u8 x s8 sums of two products saturate at 16 bits: x86 without VNNI."""
        return self.architecture in ("x86_64", "AMD64") and not _DOT_PRODUCT & set(self.instruction_sets)


def this_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> Cpu:
    """Read the CPU of this machine; without /proc the instruction sets are unknown."""
    text = cpuinfo.read_text(errors="replace") if cpuinfo.exists() else ""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    flags = set(fields.get("flags", fields.get("features", "")).split())
    return Cpu(
        model=fields.get("model name", platform.processor() or platform.machine()),
        architecture=platform.machine(),
        instruction_sets=tuple(name for name in _INTERESTING if name in flags),
        n_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    )
