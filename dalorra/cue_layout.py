"""Where the rows of B packed prompts lie: `[prompt | cue under z_1 | … | cue under z_M]`.

The part of a prompt whose keys and values are known already has keys, but no rows:

    keys  [known prefix | prompt rows | cue under z_1 | … | cue under z_M]
    rows                [prompt rows | cue under z_1 | … | cue under z_M]

Prefixes and prompt rows are padded on the right, where no row looks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dalorra.packing import right_padded
from dalorra.prompts import Prompt

Rotary = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Position ids `[B, rows]` → cos and sin, `[B, 1, rows, head_dim]` each."""


@dataclass(frozen=True, slots=True)
class CueLayout:
    """Rows of B packed prompts.

    Attributes:
        input_ids: `[B, P + M·k]`.
        visible: `[B, 1, M·k, C + P + M·k]` bool, which keys a cue row sees.
        visible_to_prompt: `[B, 1, P, C + P]` bool; None when C is 0: plain causal attention.
        cos, sin: rotary embedding, `[B, 1, P + M·k, head_dim]`.
        prefix_keys: C, keys without rows.
        prompt_rows: P.
        cue_rows: k.
    """

    input_ids: Tensor
    visible: Tensor
    visible_to_prompt: Tensor | None
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


def lay_out_cues(
    prompts: Sequence[Prompt],
    copies: int,
    rotary: Rotary,
    device: torch.device,
    known: Sequence[int] | None = None,
) -> CueLayout:
    """Lays out B prompts with the same cue, and `copies` copies of it after each.

    Args:
        prompts: B prompts.
        copies: M.
        rotary: of the base model.
        device: where the rows are wanted.
        known: how many tokens of each prompt have keys already; None: none.
    """
    cue = torch.tensor(prompts[0].cue_ids)
    k, batch = len(cue), len(prompts)
    starts = torch.tensor(known if known is not None else [0] * batch)[:, None]  # [B, 1]
    prefix = int(starts.max())  # C
    rest = [p.prompt_ids[start:] for p, start in zip(prompts, starts[:, 0].tolist(), strict=True)]
    prompt_ids, lengths = right_padded(rest)
    longest = prompt_ids.shape[1]  # P
    positions = torch.arange(longest)
    offsets = torch.arange(k).repeat(copies)
    position_ids = torch.cat([starts + positions, starts + lengths[:, None] + offsets], dim=1)
    input_ids = torch.cat([prompt_ids, cue.repeat(copies).expand(batch, -1)], dim=1)

    # A cue row sees the known prefix, the real rows of its prompt, and its own copy so far.
    copy = torch.arange(copies).repeat_interleave(k)
    own = (copy[:, None] == copy) & (offsets[:, None] >= offsets)  # [M·k, M·k]
    in_prefix = torch.arange(prefix) < starts  # [B, C]
    in_prompt = torch.cat([in_prefix, positions < lengths[:, None]], dim=1)  # [B, C + P]
    visible = torch.cat(
        [in_prompt[:, None].expand(-1, copies * k, -1), own.expand(batch, -1, -1)], dim=-1
    )
    visible_to_prompt = None
    if prefix:
        causal = (positions[:, None] >= positions).expand(batch, -1, -1)
        before = in_prefix[:, None].expand(-1, longest, -1)
        visible_to_prompt = torch.cat([before, causal], dim=-1)[:, None].to(device)
    cos, sin = rotary(position_ids.to(device))
    return CueLayout(
        input_ids.to(device),
        visible[:, None].to(device),
        visible_to_prompt,
        cos,
        sin,
        prefix,
        longest,
        k,
    )
