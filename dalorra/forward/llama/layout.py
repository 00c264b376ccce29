"""Where the rows of B packed prompts lie, in products and in attention.

**`answer_tokens`** (`CueLayout`), `[prompt | cue under z_1 | … | cue under z_M]`. The part of a
prompt whose keys and values are known already has keys, but no rows:

    keys   [known prefix | prompt | cue under z_1 | … | cue under z_M]
    slots                [prompt | cue under z_1 | … | cue under z_M]

**`all_tokens`** (`SequenceLayout`), each prompt with its cue a sequence of its own under every
sample. Rows are `[L, rows, d]`: L is 1 below the first stochastic product and M above it. Attention
sees `[L · B, T, …]`. A sequence that is read in pieces has keys, but no rows, of those before.

Prefixes, prompts and sequences are padded on the right, where no row looks. Rows are slots, unless
prompts of several lengths are joined (`Slots`). Norms and products treat every row alike, so
their rows may come from any prompt; attention alone must know which belong together. So joined rows
have no padding; they are spread out before attention and collected after it:

    rows   [prompt 1 | prompt 2 | … | cues of 1 | cues of 2 | …]
    slots  [prompt 1 | padding | cues of 1]
           [prompt 2 | padding | cues of 2]
           …
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from dalorra.forward.llama.attention import layer_mask
from dalorra.forward.llama.projection import AdaptedRows
from dalorra.forward.llama.staging import StagedPrompts

Rotary = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Position ids `[B, slots]` → cos and sin, `[B, 1, slots, head_dim]` each."""


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


@dataclass(frozen=True, slots=True)
class CueLayout:
    """Rows of B packed prompts.

    Attributes:
        input_ids: `[B, P + M·k]`; joined `[1, N + B·M·k]`.
        visible: `[B, 1, M·k, C + P + M·k]`, which keys a cue row sees, as `layer_mask` has it.
        visible_to_prompt: `[B, 1, P, C + P]`; None when C is 0: plain causal attention.
        cue_ends: `[B, M]`, the last row of each cue, in the flattened rows.
        cos, sin: rotary embedding, `[B, 1, P + M·k, head_dim]`.
        slots: of joined rows.
        cues: P or N, where the cue rows start, and how many each prompt has.
        prefix_keys: C, keys without rows.
        prompt_slots: P.
        cue_rows: k.
    """

    input_ids: Tensor
    visible: Tensor
    visible_to_prompt: Tensor | None
    cue_ends: Tensor
    cos: Tensor
    sin: Tensor
    slots: Slots | None
    cues: AdaptedRows
    prefix_keys: int
    prompt_slots: int
    cue_rows: int

    def spread(self, x: Tensor) -> Tensor:
        """Rows → slots, `[B, P + M·k, c]`."""
        return self.slots.spread(x) if self.slots else x

    def collect(self, attended: Sequence[Tensor]) -> Tensor:
        """`[B, heads, some slots, head_dim]` each, together all slots → rows, `[…, d]`."""
        by_slot = [part.transpose(1, 2) for part in attended]
        x = (torch.cat(by_slot, dim=1) if len(by_slot) > 1 else by_slot[0]).flatten(2)
        return self.slots.collect(x) if self.slots else x

    def branch(self, x: Tensor, samples: int) -> Tensor:
        """Rows of a layout for one sample → rows of one for M, the cue's repeated."""
        first = self.cues.first
        cues = x[:, first:].unflatten(1, (-1, 1, self.cue_rows))
        repeated = cues.expand(-1, -1, samples, -1, -1).flatten(1, 3)
        return torch.cat([x[:, :first], repeated], dim=1)

    @property
    def last_visible(self) -> Tensor:
        """`visible` of the rows that end a cue alone, `[B, 1, M, keys]`."""
        return self.visible[:, :, self.cue_rows - 1 :: self.cue_rows].contiguous()

    @property
    def last_rotary(self) -> tuple[Tensor, Tensor]:
        """`cos` and `sin` of the rows that end a cue alone, `[B, 1, M, head_dim]`."""
        ends = slice(self.prompt_slots + self.cue_rows - 1, None, self.cue_rows)
        return self.cos[:, :, ends], self.sin[:, :, ends]


def lay_out_cues(prompts: StagedPrompts, samples: int, prefix: int, rotary: Rotary) -> CueLayout:
    """Lays out B prompts, and their cue under each sample after each, on the prompts' device.

    Args:
        prompts: without what has keys already.
        samples: M.
        prefix: C, the most keys that one of them has.
        rotary: of the base model.
    """
    device, longest = prompts.ids.device, prompts.longest  # P
    k, batch = len(prompts.cue_ids), len(prompts.lengths)
    cues = samples * k
    starts = prompts.known[:, None]
    cue_starts = starts + prompts.lengths[:, None]
    offsets = torch.arange(k, device=device).repeat(samples)
    positions = torch.arange(longest, device=device)
    cos, sin = rotary(torch.cat([starts + positions, cue_starts + offsets], dim=1))

    each = torch.arange(batch, device=device)[:, None]
    ends = torch.arange(k - 1, cues, k, device=device)  # of the cues
    if prompts.joined:
        first = prompts.ids.shape[1]  # N
        repeated = prompts.cue_ids.repeat(batch * samples)[None]
        cue_ends = first + each * cues + ends
        slots = Slots.of(prompts.lengths, first, longest, cues)
    else:
        first, slots = longest, None
        repeated = prompts.cue_ids.repeat(samples).expand(batch, -1)
        cue_ends = each * (longest + cues) + longest + ends
    return CueLayout(
        input_ids=torch.cat([prompts.ids, repeated], dim=1),
        visible=layer_mask(_seen_by_cues(prompts, samples, prefix), cos),
        visible_to_prompt=layer_mask(_seen_by_prompts(prompts, prefix), cos) if prefix else None,
        cue_ends=cue_ends,
        cos=cos,
        sin=sin,
        slots=slots,
        cues=AdaptedRows(first, cues if prompts.joined else None),
        prefix_keys=prefix,
        prompt_slots=longest,
        cue_rows=k,
    )


def _seen_by_cues(prompts: StagedPrompts, samples: int, prefix: int) -> Tensor:
    """The known prefix, the real rows of the prompt, and the own cue so far.

    Returns:
        `[B, 1, M·k, C + P + M·k]` bool.
    """
    k, batch, device = len(prompts.cue_ids), len(prompts.lengths), prompts.ids.device
    row = torch.arange(samples * k, device=device)
    own = (row[:, None] // k == row // k) & (row[:, None] >= row)  # [M·k, M·k]
    real = torch.arange(prompts.longest, device=device) < prompts.lengths[:, None]
    before = torch.cat([_real_prefix(prompts, prefix), real], dim=1)  # [B, C + P]
    both = [before[:, None].expand(-1, len(row), -1), own.expand(batch, -1, -1)]
    return torch.cat(both, dim=-1)[:, None]


def _seen_by_prompts(prompts: StagedPrompts, prefix: int) -> Tensor:
    """The known prefix, and the rows so far, `[B, 1, P, C + P]` bool."""
    row = torch.arange(prompts.longest, device=prompts.ids.device)
    causal = (row[:, None] >= row).expand(len(prompts.lengths), -1, -1)
    before = _real_prefix(prompts, prefix)[:, None].expand(-1, len(row), -1)
    return torch.cat([before, causal], dim=-1)[:, None]


def _real_prefix(prompts: StagedPrompts, prefix: int) -> Tensor:
    """`[B, C]` bool."""
    return torch.arange(prefix, device=prompts.ids.device) < prompts.known[:, None]


@dataclass(frozen=True, slots=True)
class SequenceLayout:
    """Rows of B sequences.

    Attributes:
        lengths: `[B]`, one at least.
        ends: `[B]`, the last row of each.
        cos, sin: rotary embedding, `[1, 1, T, head_dim]`.
        slots: of joined rows.
        before: C, keys without rows, the same number for each.
    """

    lengths: Tensor
    ends: Tensor
    cos: Tensor
    sin: Tensor
    slots: Slots | None
    before: int

    @classmethod
    def of(cls, prompts: StagedPrompts, rotary: Rotary, before: int = 0) -> Self:
        """Lays out prompts that were staged for `all_tokens`, on their device."""
        lengths, longest = prompts.lengths.clamp_min(1), prompts.longest
        cos, sin = rotary(torch.arange(before, before + longest, device=lengths.device)[None])
        rows = prompts.ids.numel()
        starts = prompts.starts.clamp_max(rows - 1)  # of an empty prompt at the end
        return cls(
            lengths,
            ends=starts + lengths - 1,
            cos=cos,
            sin=sin,
            slots=Slots.of(prompts.lengths, rows, longest) if prompts.joined else None,
            before=before,
        )

    def spread(self, x: Tensor) -> Tensor:
        """`[L, rows, c]` → `[L · B, T, c]`."""
        return self.slots.spread(x) if self.slots else x.view(-1, self.cos.shape[2], x.shape[-1])

    def collect(self, x: Tensor) -> Tensor:
        """`[L · B, T, c]` → `[L, rows, c]`."""
        if self.slots:
            return self.slots.collect(x)
        return x.reshape(-1, len(self.lengths) * x.shape[1], x.shape[2])

    def last_rotary(self, samples: int) -> tuple[Tensor, Tensor]:
        """`cos` and `sin` of the last rows, `[M · B, 1, 1, head_dim]`."""
        at = (self.lengths - 1).repeat(samples)
        return self.cos[0, 0, at][:, None, None], self.sin[0, 0, at][:, None, None]

    def last_visible(self, samples: int) -> Tensor:
        """Which keys the last rows see, `[M · B, 1, 1, C + T]`, as `layer_mask` has it."""
        positions = torch.arange(self.before + self.cos.shape[2], device=self.lengths.device)
        real = (positions < self.before + self.lengths[:, None]).repeat(samples, 1)
        return layer_mask(real[:, None, None], self.cos)
