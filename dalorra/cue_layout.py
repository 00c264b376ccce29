"""Where the rows of B packed prompts lie: `[prompt | cue under z_1 | … | cue under z_M]`.

The part of a prompt whose keys and values are known already has keys, but no rows:

    keys   [known prefix | prompt | cue under z_1 | … | cue under z_M]
    slots                [prompt | cue under z_1 | … | cue under z_M]

Prefixes and prompts are padded on the right, where no row looks. Rows are slots; those of joined
prompts have no padding and lie as `dalorra.slots` says.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dalorra.attention import layer_mask
from dalorra.projection import AdaptedRows
from dalorra.slots import Slots
from dalorra.staging import StagedPrompts

Rotary = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Position ids `[B, slots]` → cos and sin, `[B, 1, slots, head_dim]` each."""


@dataclass(frozen=True, slots=True)
class CueLayout:
    """Rows of B packed prompts.

    Attributes:
        input_ids: `[B, P + M·k]`; joined `[1, N + B·M·k]`.
        visible: `[B, 1, M·k, C + P + M·k]`, which keys a cue row sees, as `layer_mask` has it.
        visible_to_prompt: `[B, 1, P, C + P]`; None when C is 0: plain causal attention.
        prompt_ends: `[B]`, the last row of each prompt, in the flattened rows.
        cue_ends: `[B, M]`, the last row of each copy, in the flattened rows.
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
    prompt_ends: Tensor
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

    def branch(self, x: Tensor, copies: int) -> Tensor:
        """Rows of a layout with one copy → rows of one with M, the cue's repeated."""
        first = self.cues.first
        cues = x[:, first:].unflatten(1, (-1, 1, self.cue_rows))
        repeated = cues.expand(-1, -1, copies, -1, -1).flatten(1, 3)
        return torch.cat([x[:, :first], repeated], dim=1)

    @property
    def last_visible(self) -> Tensor:
        """`visible` of the rows that end a copy alone, `[B, 1, M, keys]`."""
        return self.visible[:, :, self.cue_rows - 1 :: self.cue_rows].contiguous()

    @property
    def last_rotary(self) -> tuple[Tensor, Tensor]:
        """`cos` and `sin` of the rows that end a copy alone, `[B, 1, M, head_dim]`."""
        ends = slice(self.prompt_slots + self.cue_rows - 1, None, self.cue_rows)
        return self.cos[:, :, ends], self.sin[:, :, ends]


def lay_out_cues(prompts: StagedPrompts, copies: int, prefix: int, rotary: Rotary) -> CueLayout:
    """Lays out B prompts, and `copies` copies of their cue after each, on the prompts' device.

    Args:
        prompts: without what has keys already.
        copies: M.
        prefix: C, the most keys that one of them has.
        rotary: of the base model.
    """
    device, longest = prompts.ids.device, prompts.longest  # P
    k, batch = len(prompts.cue_ids), len(prompts.lengths)
    cues = copies * k
    starts = prompts.known[:, None]
    cue_starts = starts + prompts.lengths[:, None]
    offsets = torch.arange(k, device=device).repeat(copies)
    positions = torch.arange(longest, device=device)
    cos, sin = rotary(torch.cat([starts + positions, cue_starts + offsets], dim=1))

    each = torch.arange(batch, device=device)[:, None]
    ends = torch.arange(k - 1, cues, k, device=device)  # of the copies
    prompt_starts = prompts.starts
    if prompts.joined:
        first = prompts.ids.shape[1]  # N
        repeated = prompts.cue_ids.repeat(batch * copies)[None]
        cue_ends = first + each * cues + ends
        slots = Slots.of(prompts.lengths, first, longest, cues)
    else:
        first, slots = longest, None
        repeated = prompts.cue_ids.repeat(copies).expand(batch, -1)
        cue_ends = each * (longest + cues) + longest + ends
        prompt_starts = prompt_starts + each[:, 0] * cues
    return CueLayout(
        input_ids=torch.cat([prompts.ids, repeated], dim=1),
        visible=layer_mask(_seen_by_cues(prompts, copies, prefix), cos),
        visible_to_prompt=layer_mask(_seen_by_prompts(prompts, prefix), cos) if prefix else None,
        prompt_ends=prompt_starts + prompts.lengths.clamp_min(1) - 1,
        cue_ends=cue_ends,
        cos=cos,
        sin=sin,
        slots=slots,
        cues=AdaptedRows(first, cues if prompts.joined else None),
        prefix_keys=prefix,
        prompt_slots=longest,
        cue_rows=k,
    )


def _seen_by_cues(prompts: StagedPrompts, copies: int, prefix: int) -> Tensor:
    """The known prefix, the real rows of the prompt, and the own copy so far.

    Returns:
        `[B, 1, M·k, C + P + M·k]` bool.
    """
    k, batch, device = len(prompts.cue_ids), len(prompts.lengths), prompts.ids.device
    row = torch.arange(copies * k, device=device)
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
