"""Attention of packed rows, by a fused kernel or by plain matrix products.

On a CPU PyTorch's fused kernel is faster than plain products where there is AMX
(`benchmarks.attention`) and slower in bfloat16 where there is none; its backward is mostly slower
in bfloat16 on both. Plain products go over blocks of query rows, so that scores take little memory
however many keys there are, and take all query heads that share a key head as one; causal ones see
no key that they must hide.
"""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from dalorra.hardware import has_amx

_BLOCK: Final = 64  # query rows whose scores stay in the processor's cache
_SCORES: Final = 1 << 18
"""Scores of each head that are computed at once where that is more than a block of rows."""


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The rows are those of the last keys: each attends to its own and to all keys before it.

    Args:
        query: `[B, heads, rows, head_dim]`.
        key: `[B, kv_heads, keys, head_dim]`, as many keys as rows, or more.
        value: like `key`.

    Returns:
        `[B, heads, rows, head_dim]`.
    """
    if not _fused(query):
        return causal_by_products(query, key, value)
    rows, keys = query.shape[2], key.shape[2]
    if rows == keys:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    visible = torch.ones((1, 1, rows, keys), dtype=torch.bool, device=query.device)
    return masked_attention(query, key, value, layer_mask(visible.tril_(keys - rows), query))


def causal_by_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`causal_attention` by plain products, one block of query rows after the other."""
    rows, before = query.shape[2], key.shape[2] - query.shape[2]
    mask = torch.ones((_BLOCK, _BLOCK), dtype=torch.bool).tril()
    blocks = []
    for start in range(0, rows, _BLOCK):
        end = min(start + _BLOCK, rows)
        seen = before + end
        visible = mask[None, None, : end - start, : end - start]
        blocks.append(
            grouped_attention(query[:, :, start:end], key[:, :, :seen], value[:, :, :seen], visible)
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
    return masked_by_products(query, key, value, mask)


def masked_by_products(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float | None = None
) -> Tensor:
    """`grouped_attention`, one block of query rows after the other where there are many keys."""
    step = max(_SCORES // max(key.shape[2], 1), _BLOCK)
    if query.shape[2] <= step:
        return grouped_attention(query, key, value, visible, scale)
    parts = zip(query.split(step, dim=2), visible.split(step, dim=2), strict=True)
    return torch.cat([grouped_attention(q, key, value, v, scale) for q, v in parts], dim=2)


def grouped_attention(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float | None = None
) -> Tensor:
    """softmax(QKᵀ · scale) V over the visible keys, by plain products, scores in float32.

    Args:
        query: `[B, heads, rows, head_dim]`.
        key: `[B, kv_heads, keys, head_dim]`.
        value: like `key`.
        visible: `[B or 1, 1, rows, k]` bool, of the last k keys; all rows see those before. Every
            row sees one key at least.
        scale: 1/√head_dim by default.

    Returns:
        `[B, heads, rows, head_dim]`.
    """
    batch, heads, rows, width = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    grouped = query.reshape(batch, kv_heads, -1, width)  # [B, kv_heads, group · rows, head_dim]
    # In place: scores are the largest tensors here, and each new one costs more than its sums.
    scores = (grouped @ key.transpose(-1, -2)).float().mul_(scale or width**-0.5)
    scores = scores.view(batch, kv_heads, heads // kv_heads, rows, keys)
    scores[..., keys - visible.shape[-1] :].masked_fill_(~visible[:, :, None], -torch.inf)
    weights = scores.softmax(dim=-1).to(value.dtype).view(batch, kv_heads, -1, keys)
    return (weights @ value).view(batch, heads, rows, width)


def by_row(attended: Tensor) -> Tensor:
    """`[B, heads, rows, head_dim]` → `[B, rows, heads · head_dim]`."""
    return attended.transpose(1, 2).flatten(2)


def _fused(query: Tensor) -> bool:
    return query.device.type != "cpu" or (has_amx() and not query.requires_grad)
