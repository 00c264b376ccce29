"""Lets a transformers model train with attention whose backward is fast on CPUs.

With cue rows alone as queries, the backward of PyTorch's fused CPU kernel takes over half of a
training step; plain matrix products need a tenth of that. What they keep for the backward grows
with the square of the tokens, so where there are many the weights are computed again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, PreTrainedModel

from dalorra.forward.llama.attention import (
    causal_attention,
    grouped_attention,
    masked_by_products,
)

NAME: Final = "dalorra_grouped"
_KEPT: Final = 1 << 20
"""Most scores of a head whose weights are kept for the backward."""
_BLOCK: Final = 64  # query rows whose weights are computed again at once


def _attention(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    if attention_mask is None:
        out = causal_attention(query, key, value)
    elif query.requires_grad and query.shape[2] * key.shape[2] > _KEPT:
        parts = zip(query.split(_BLOCK, 2), attention_mask.split(_BLOCK, 2), strict=True)
        blocks: list[Tensor] = [
            checkpoint(grouped_attention, q, key, value, visible, scaling, use_reentrant=False)
            for q, visible in parts
        ]
        out = torch.cat(blocks, dim=2)
    else:
        out = masked_by_products(query, key, value, attention_mask, scaling)
    return out.transpose(1, 2), None  # [B, rows, heads, head_dim]


AttentionInterface.register(NAME, _attention)


@contextmanager
def differentiable_attention(model: PreTrainedModel) -> Iterator[None]:
    """Uses plain products inside the block on CPUs; elsewhere the fused kernels stay."""
    before = model.config._attn_implementation  # noqa: SLF001 - what the public setter writes
    if model.device.type == "cpu":
        model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
