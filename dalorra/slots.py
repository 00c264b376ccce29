"""Prompts one after the other, without padding, and a sequence for each of them in attention.

Norms and products treat every row alike, so their rows may come from any prompt; attention alone
must know which belong together. So joined rows are spread out before it and collected after it:

    rows   [prompt 1 | prompt 2 | … | cues of 1 | cues of 2 | …]
    slots  [prompt 1 | padding | cues of 1]
           [prompt 2 | padding | cues of 2]
           …
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Slots:
    """Where R joined rows of B sequences lie in S slots each.

    Attributes:
        row: `[B, S]`, the row in each slot; that of another in padding, where no row looks.
        slot: `[R]`, the slot of each row, b · S + s.
    """

    row: Tensor
    slot: Tensor

    @classmethod
    def of(cls, lengths: Tensor, rows: int, longest: int, cue_rows: int = 0) -> Self:
        """For N rows of prompts, and after them the rows of their cues.

        Args:
            lengths: `[B]`, rows of each prompt; rows beyond their sum are padding.
            rows: N, one at least.
            longest: P, slots of a prompt.
            cue_rows: of each prompt's cues; S is P + `cue_rows`.
        """
        device, batch, slots = lengths.device, len(lengths), longest + cue_rows
        ends = lengths.cumsum(0)
        starts, each = ends - lengths, torch.arange(rows, device=device)
        prompt = torch.searchsorted(ends, each, right=True).clamp_max(batch - 1)  # of each row
        slot = prompt * slots + (each - starts[prompt]).clamp_max(longest - 1)
        row = (starts[:, None] + torch.arange(longest, device=device)).clamp_max(rows - 1)
        cues = torch.arange(batch * cue_rows, device=device).view(batch, cue_rows)
        first = torch.arange(batch, device=device)[:, None] * slots + longest
        cue_slots = first + torch.arange(cue_rows, device=device)
        return cls(torch.cat([row, rows + cues], dim=1), torch.cat([slot, cue_slots.flatten()]))

    def spread(self, x: Tensor) -> Tensor:
        """`[L, R, c]` → `[L · B, S, c]`."""
        batch, slots = self.row.shape
        return _take(x, self.row.flatten()).reshape(len(x) * batch, slots, -1)

    def collect(self, x: Tensor) -> Tensor:
        """`[L · B, S, c]` → `[L, R, c]`."""
        return _take(x.reshape(-1, self.row.numel(), x.shape[-1]), self.slot)


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """`[L, R, c]` → `[L, n, c]`; rows of one block of memory are the faster to gather."""
    return x[0].index_select(0, rows)[None] if len(x) == 1 else x.index_select(1, rows)
