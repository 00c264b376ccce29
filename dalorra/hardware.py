"""What the processor can do, and whom its cores belong to.

Linux tells what it can do; elsewhere nothing is taken for granted.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

import torch

CPUINFO: Final = Path("/proc/cpuinfo")


def multiplies_bfloat16(cpuinfo: Path = CPUINFO) -> bool:
    """Whether it has AMX or AVX512-BF16; elsewhere bfloat16 is emulated and slower."""
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(_flags(cpuinfo))


def has_amx(cpuinfo: Path = CPUINFO) -> bool:
    """Whether it multiplies tiles of bfloat16, which PyTorch's fused attention uses."""
    return "amx_bf16" in _flags(cpuinfo)


@cache
def _flags(cpuinfo: Path) -> frozenset[str]:
    try:
        flags = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:  # not Linux
        return frozenset()
    return frozenset(flags[1].split()) if flags else frozenset()


@contextmanager
def without_team() -> Iterator[None]:
    """In the block, the calling thread computes alone, so that the model's keeps the cores.

    Every thread that computes with PyTorch on a CPU gets a team of OpenMP threads to itself, which
    stays for as long as the thread. Two teams are more threads than cores; the OpenMP runtime then
    no longer waits actively between operations, and each of the hundreds in a forward waits for a
    thread to be woken: on two cores that added 61 ms to a sentence of 86 (`benchmarks.serving`).
    """
    before = torch.get_num_threads()  # asked first: PyTorch decides at the first question
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
