"""Attention of packed rows, by a fused kernel or by plain matrix products.

On a CPU PyTorch's fused kernel is faster than plain products where there is AMX
(`benchmarks.attention`) and slower in bfloat16 where there is none; its backward is mostly slower
in bfloat16 on both. Plain products go over blocks of query rows, see no key that they must hide,
and take all query heads that share a key head as one.
"""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from dalorra.hardware import has_amx

_BLOCK: Final = 64  # query rows whose scores stay in the processor's cache


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Each row attends to itself and to the rows before it.

    Args:
        query: `[B, heads, rows, head_dim]`.
        key: `[B, kv_heads, rows, head_dim]`.
        value: like `key`.

    Returns:
        `[B, heads, rows, head_dim]`.
    """
    if _fused(query):
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return causal_by_products(query, key, value)


def causal_by_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`causal_attention` by plain products, one block of query rows after the other."""
    rows = query.shape[2]
    mask = torch.ones((_BLOCK, _BLOCK), dtype=torch.bool).tril()
    blocks = []
    for start in range(0, rows, _BLOCK):
        end = min(start + _BLOCK, rows)
        visible = F.pad(mask[: end - start, : end - start], (start, 0), value=True)
        blocks.append(
            grouped_attention(
                query[:, :, start:end], key[:, :, :end], value[:, :, :end], visible[None, None]
            )
        )
    return torch.cat(blocks, dim=2) if len(blocks) > 1 else blocks[0]


def layer_mask(visible: Tensor, like: Tensor) -> Tensor:
    """What `masked_attention` takes for `visible`, made once for all layers.

    The fused kernel wants numbers to add to the scores, and would make them in every layer.

    Args:
        visible: `[B or 1, 1, rows, keys]` bool.
        like: of the queries' device and precision.
    """
    if not _fused(like):
        return visible
    return torch.zeros_like(visible, dtype=like.dtype).masked_fill_(~visible, -torch.inf)


def masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Each row attends to the keys that the mask, from `layer_mask`, shows it."""
    if _fused(query):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    return grouped_attention(query, key, value, mask)


def grouped_attention(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float | None = None
) -> Tensor:
    """softmax(QKᵀ · scale) V over the visible keys, by plain products, scores in float32.

    Args:
        query: `[B, heads, rows, head_dim]`.
        key: `[B, kv_heads, keys, head_dim]`.
        value: like `key`.
        visible: `[B or 1, 1, rows, keys]` bool; every row sees one key at least.
        scale: 1/√head_dim by default.

    Returns:
        `[B, heads, rows, head_dim]`.
    """
    batch, heads, rows, width = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    grouped = query.reshape(batch, kv_heads, -1, width)  # [B, kv_heads, group · rows, head_dim]
    scores = (grouped @ key.transpose(-1, -2)).float() * (scale or width**-0.5)
    scores = scores.view(batch, kv_heads, heads // kv_heads, rows, keys)
    scores = scores.masked_fill(~visible[:, :, None], -torch.inf)
    weights = scores.softmax(dim=-1).to(value.dtype).view(batch, kv_heads, -1, keys)
    return (weights @ value).view(batch, heads, rows, width)


def by_row(attended: Tensor) -> Tensor:
    """`[B, heads, rows, head_dim]` → `[B, rows, heads · head_dim]`."""
    return attended.transpose(1, 2).flatten(2)


def _fused(query: Tensor) -> bool:
    return query.device.type != "cpu" or (has_amx() and not query.requires_grad)
