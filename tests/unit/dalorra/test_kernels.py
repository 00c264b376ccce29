"""Kernels of oneDNN: what is kept of them does not grow with the shapes that come."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dalorra.kernels import CAPACITIES, KEPT, keep_few

ROOT = Path(__file__).parents[3]
MEMORY_OF_SHAPES = """
import ctypes, sys
import dalorra.cli
assert "torch" not in sys.modules
import torch

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "abcdefghij"]  # of glibc's struct mallinfo2

def bytes_in_use():
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Info
    return mallinfo2().e + mallinfo2().h

def multiply(shapes):
    for rows in shapes:
        torch.nn.functional.linear(torch.ones(rows, 128, dtype=torch.bfloat16), weight)

weight = torch.ones(256, 128, dtype=torch.bfloat16)
with torch.inference_mode():
    multiply(range(1, 200))
    before = bytes_in_use()
    multiply(range(200, 400))
print((bytes_in_use() - before) / 2**20)
"""


def test_an_operators_own_variables_win():
    keep_few(environment := {CAPACITIES[0]: "7"})
    assert environment == {CAPACITIES[0]: "7", CAPACITIES[1]: str(KEPT)}


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")
def test_memory_does_not_grow_with_the_shapes_that_come():
    unsaid = {name: value for name, value in os.environ.items() if name not in CAPACITIES}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_OF_SHAPES],
        env={**unsaid, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 10  # MiB; some hundred where all kernels are kept
