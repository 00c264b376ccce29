"""How many of the kernels that oneDNN makes are kept, told to it in time.

On a CPU a matrix product in bfloat16 is run by a kernel that is made for its very shape, and kept,
once by oneDNN and once by PyTorch, up to 1,024 each. Prompts of mixed lengths make batches of ever
other shapes, and in minutes these kernels come to more than the weights of a small model. What
makes them worth keeping is that all layers of a forward have the same few shapes. `benchmarks.soak`
shows the memory; started with both variables at 1024, that of kept kernels, too.

Both caches read their size when they are first used: `keep_few` comes before the first import of
torch.
"""

import os
from collections.abc import MutableMapping
from typing import Final

KEPT: Final = 128
"""Kernels, of which the forward of a Llama uses fewer than ten."""

CAPACITIES: Final = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def keep_few(environment: MutableMapping[str, str] = os.environ) -> None:
    """Bounds the caches, where the operator's own variables leave them open."""
    for name in CAPACITIES:
        environment.setdefault(name, str(KEPT))
