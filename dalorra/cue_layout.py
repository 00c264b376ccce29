"""Where the rows of B packed prompts lie: `[prompt | cue under z_1 | … | cue under z_M]`.

The part of a prompt whose keys and values are known already has keys, but no rows:

    keys  [known prefix | prompt rows | cue under z_1 | … | cue under z_M]
    rows                [prompt rows | cue under z_1 | … | cue under z_M]

Prefixes and prompt rows are padded on the right, where no row looks.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dalorra.staging import StagedPrompts

Rotary = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Position ids `[B, rows]` → cos and sin, `[B, 1, rows, head_dim]` each."""


@dataclass(frozen=True, slots=True)
class CueLayout:
    """Rows of B packed prompts.

    Attributes:
        input_ids: `[B, P + M·k]`.
        visible: `[B, 1, M·k, C + P + M·k]` bool, which keys a cue row sees.
        visible_to_prompt: `[B, 1, P, C + P]` bool; None when C is 0: plain causal attention.
        prompt_ends: `[B]`, the last row of each prompt.
        cos, sin: rotary embedding, `[B, 1, P + M·k, head_dim]`.
        prefix_keys: C, keys without rows.
        prompt_rows: P.
        cue_rows: k.
    """

    input_ids: Tensor
    visible: Tensor
    visible_to_prompt: Tensor | None
    prompt_ends: Tensor
    cos: Tensor
    sin: Tensor
    prefix_keys: int
    prompt_rows: int
    cue_rows: int

    @property
    def ends(self) -> Tensor:
        """`[M]`, the last row of each copy."""
        first = self.prompt_rows + self.cue_rows - 1
        return torch.arange(
            first, self.input_ids.shape[1], self.cue_rows, device=self.input_ids.device
        )

    def one_copy(self) -> "CueLayout":
        """The same with the first copy alone."""
        rows, k = self.prompt_rows + self.cue_rows, self.cue_rows
        return replace(
            self,
            input_ids=self.input_ids[:, :rows],
            visible=self.visible[:, :, :k, : self.prefix_keys + rows],
            cos=self.cos[:, :, :rows],
            sin=self.sin[:, :, :rows],
        )

    def branch(self, x: Tensor) -> Tensor:
        """`[B, P + k, d]` → `[B, P + M·k, d]`, the cue rows repeated for every copy."""
        start = self.prompt_rows
        copies = (self.input_ids.shape[1] - start) // self.cue_rows
        return torch.cat([x[:, :start], x[:, start:].repeat(1, copies, 1)], dim=1)


def lay_out_cues(prompts: StagedPrompts, copies: int, prefix: int, rotary: Rotary) -> CueLayout:
    """Lays out B prompts, and `copies` copies of their cue after each, on the prompts' device.

    Args:
        prompts: without what has keys already.
        copies: M.
        prefix: C, the most keys that one of them has.
        rotary: of the base model.
    """
    device = prompts.ids.device
    k, (batch, longest) = len(prompts.cue_ids), prompts.ids.shape  # P
    starts, lengths = prompts.known[:, None], prompts.lengths[:, None]  # [B, 1]
    positions = torch.arange(longest, device=device)
    offsets = torch.arange(k, device=device).repeat(copies)
    position_ids = torch.cat([starts + positions, starts + lengths + offsets], dim=1)
    input_ids = torch.cat([prompts.ids, prompts.cue_ids.repeat(copies).expand(batch, -1)], dim=1)

    # A cue row sees the known prefix, the real rows of its prompt, and its own copy so far.
    copy = torch.arange(copies * k, device=device) // k
    own = (copy[:, None] == copy) & (offsets[:, None] >= offsets)  # [M·k, M·k]
    in_prefix = torch.arange(prefix, device=device) < starts  # [B, C]
    in_prompt = torch.cat([in_prefix, positions < lengths], dim=1)  # [B, C + P]
    visible = torch.cat(
        [in_prompt[:, None].expand(-1, copies * k, -1), own.expand(batch, -1, -1)], dim=-1
    )
    visible_to_prompt = None
    if prefix:
        causal = (positions[:, None] >= positions).expand(batch, -1, -1)
        before = in_prefix[:, None].expand(-1, longest, -1)
        visible_to_prompt = torch.cat([before, causal], dim=-1)[:, None]
    cos, sin = rotary(position_ids)
    return CueLayout(
        input_ids,
        visible[:, None],
        visible_to_prompt,
        prompts.lengths.clamp_min(1) - 1,
        cos,
        sin,
        prefix,
        longest,
        k,
    )
