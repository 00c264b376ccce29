"""Where the rows of B prompts with their cues lie, each a sequence of its own under every sample.

Rows are `[L, rows, d]`: L is 1 below the first stochastic product and M above it. Attention sees
`[L · B, T, …]`, a sequence for each prompt, padded on the right, where no row looks.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from dalorra.attention import layer_mask
from dalorra.cue_layout import Rotary
from dalorra.slots import Slots
from dalorra.staging import StagedPrompts


@dataclass(frozen=True, slots=True)
class SequenceLayout:
    """Rows of B sequences.

    Attributes:
        lengths: `[B]`, one at least.
        ends: `[B]`, the last row of each.
        prompt_ends: `[B]`, the row before its cue.
        cos, sin: rotary embedding, `[1, 1, T, head_dim]`.
        slots: of joined rows.
    """

    lengths: Tensor
    ends: Tensor
    prompt_ends: Tensor
    cos: Tensor
    sin: Tensor
    slots: Slots | None

    @classmethod
    def of(cls, prompts: StagedPrompts, rotary: Rotary) -> Self:
        """Lays out prompts that were staged for `all_tokens`, on their device."""
        lengths, longest = prompts.lengths.clamp_min(1), prompts.longest
        cos, sin = rotary(torch.arange(longest, device=lengths.device)[None])
        rows = prompts.ids.numel()
        starts = prompts.starts.clamp_max(rows - 1)  # of an empty prompt at the end
        return cls(
            lengths,
            ends=starts + lengths - 1,
            prompt_ends=starts + (lengths - 1 - len(prompts.cue_ids)).clamp_min(0),
            cos=cos,
            sin=sin,
            slots=Slots.of(prompts.lengths, rows, longest) if prompts.joined else None,
        )

    def spread(self, x: Tensor) -> Tensor:
        """`[L, rows, c]` → `[L · B, T, c]`."""
        return self.slots.spread(x) if self.slots else x.view(-1, self.cos.shape[2], x.shape[-1])

    def collect(self, x: Tensor) -> Tensor:
        """`[L · B, T, c]` → `[L, rows, c]`."""
        if self.slots:
            return self.slots.collect(x)
        return x.reshape(-1, len(self.lengths) * x.shape[1], x.shape[2])

    def last_rotary(self, copies: int) -> tuple[Tensor, Tensor]:
        """`cos` and `sin` of the last rows, `[M · B, 1, 1, head_dim]`."""
        at = (self.lengths - 1).repeat(copies)
        return self.cos[0, 0, at][:, None, None], self.sin[0, 0, at][:, None, None]

    def last_visible(self, copies: int) -> Tensor:
        """Which keys the last rows see, `[M · B, 1, 1, T]`, as `layer_mask` has it."""
        positions = torch.arange(self.cos.shape[2], device=self.lengths.device)
        real = (positions < self.lengths[:, None]).repeat(copies, 1)
        return layer_mask(real[:, None, None], self.cos)
