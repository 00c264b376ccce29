"""Keeps the cores to the one thread that runs the model.

Every thread that computes with PyTorch on a CPU gets a team of OpenMP threads to itself, which
stays for as long as the thread. Two teams are more threads than cores; the OpenMP runtime then no
longer waits actively between operations, and each of the hundreds in a forward waits for a thread
to be woken: on two cores that added 61 ms to a sentence of 86 (`benchmarks.serving`).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_team() -> Iterator[None]:
    """In the block, the calling thread computes alone, so that no team is made for it."""
    before = torch.get_num_threads()  # first of all: it makes up this thread's mind, once
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
