"""What the processor can do, as Linux tells it; elsewhere nothing is taken for granted."""

import re
from functools import cache
from pathlib import Path
from typing import Final

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
