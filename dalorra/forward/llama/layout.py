"""Where the rows of B packed prompts lie, in products and in attention.

**`answer_tokens`** (`CueLayout`), `[prompt | tail under z_1 | … | tail under z_M]`; a tail is the
cue, and behind it the trie of labels of several tokens (`dalorra.labels`). The part of a prompt
whose keys and values are known already has keys, but no rows:

    keys   [known prefix | prompt | tail under z_1 | … | tail under z_M]
    slots                [prompt | tail under z_1 | … | tail under z_M]

**`all_tokens`** (`SequenceLayout`), each prompt with its tail a sequence of its own under every
sample. Rows are `[L, rows, d]`: L is 1 below the first stochastic product and M above it. Attention
sees `[L · B, T, …]`. A sequence that is read in pieces has keys, but no rows, of those before.

Prefixes, prompts and sequences are padded on the right, where no row looks. Rows are slots, unless
prompts of several lengths are joined (`Slots`). Norms and products treat every row alike, so
their rows may come from any prompt; attention alone must know which belong together. So joined rows
have no padding; they are spread out before attention and collected after it:

    rows   [prompt 1 | prompt 2 | … | tails of 1 | tails of 2 | …]
    slots  [prompt 1 | padding | tails of 1]
           [prompt 2 | padding | tails of 2]
           …
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from dalorra.forward.llama.attention import causal_attention, layer_mask, masked_attention
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
        input_ids: `[B, P + M·t]`; joined `[1, N + B·M·t]`.
        visible: `[B, 1, M·t, C + P + M·t]`, keys that a row of a tail sees, as `layer_mask` has it.
        visible_to_prompt: `[B, 1, P, C + P]`; None when C is 0: plain causal attention.
        ends: `[B, M·A]`, the rows that are read off, the last A of each tail, in the flattened
            rows.
        end_rows: `[M·A]`, those of one prompt, counted from its first tail.
        cos, sin: rotary embedding, `[B, 1, P + M·t, head_dim]`.
        slots: of joined rows.
        tails: P or N, where the tails start, and how many rows each prompt has of them.
        prefix_keys: C, keys without rows.
        prompt_slots: P.
        tail_rows: t.
    """

    input_ids: Tensor
    visible: Tensor
    visible_to_prompt: Tensor | None
    ends: Tensor
    end_rows: Tensor
    cos: Tensor
    sin: Tensor
    slots: Slots | None
    tails: AdaptedRows
    prefix_keys: int
    prompt_slots: int
    tail_rows: int

    def spread(self, x: Tensor) -> Tensor:
        """Rows → slots, `[B, P + M·t, c]`."""
        return self.slots.spread(x) if self.slots else x

    def collect(self, attended: Sequence[Tensor]) -> Tensor:
        """`[B, heads, some slots, head_dim]` each, together all slots → rows, `[…, d]`."""
        by_slot = [part.transpose(1, 2) for part in attended]
        x = (torch.cat(by_slot, dim=1) if len(by_slot) > 1 else by_slot[0]).flatten(2)
        return self.slots.collect(x) if self.slots else x

    def branch(self, x: Tensor, samples: int) -> Tensor:
        """Rows of a layout for one sample → rows of one for M, the tail's repeated."""
        first = self.tails.first
        tails = x[:, first:].unflatten(1, (-1, 1, self.tail_rows))
        repeated = tails.expand(-1, -1, samples, -1, -1).flatten(1, 3)
        return torch.cat([x[:, :first], repeated], dim=1)

    @property
    def last_visible(self) -> Tensor:
        """`visible` of the rows that are read off alone, `[B, 1, M·A, keys]`."""
        return self.visible[:, :, self.end_rows]

    @property
    def last_rotary(self) -> tuple[Tensor, Tensor]:
        """`cos` and `sin` of the rows that are read off alone, `[B, 1, M·A, head_dim]`."""
        slots = self.prompt_slots + self.end_rows
        return self.cos[:, :, slots], self.sin[:, :, slots]


def lay_out_cues(prompts: StagedPrompts, samples: int, prefix: int, rotary: Rotary) -> CueLayout:
    """Lays out B prompts, and their tail under each sample after each, on the prompts' device.

    Args:
        prompts: without what has keys already.
        samples: M.
        prefix: C, the most keys that one of them has.
        rotary: of the base model.
    """
    device, longest = prompts.ids.device, prompts.longest  # P
    t, batch = len(prompts.tail.ids), len(prompts.lengths)
    tails = samples * t
    starts = prompts.known[:, None]
    tail_starts = starts + prompts.lengths[:, None]
    offsets = prompts.tail.depths.repeat(samples)
    positions = torch.arange(longest, device=device)
    cos, sin = rotary(torch.cat([starts + positions, tail_starts + offsets], dim=1))

    each = torch.arange(batch, device=device)[:, None]
    ends = (
        torch.arange(tails, device=device)
        .view(samples, t)[:, t - 1 - prompts.tail.nodes :]
        .flatten()
    )
    if prompts.joined:
        first = prompts.ids.shape[1]  # N
        repeated = prompts.tail.ids.repeat(batch * samples)[None]
        all_ends = first + each * tails + ends
        slots = Slots.of(prompts.lengths, first, longest, tails)
    else:
        first, slots = longest, None
        repeated = prompts.tail.ids.repeat(samples).expand(batch, -1)
        all_ends = each * (longest + tails) + longest + ends
    return CueLayout(
        input_ids=torch.cat([prompts.ids, repeated], dim=1),
        visible=layer_mask(_seen_by_tails(prompts, samples, prefix), cos),
        visible_to_prompt=layer_mask(_seen_by_prompts(prompts, prefix), cos) if prefix else None,
        ends=all_ends,
        end_rows=ends,
        cos=cos,
        sin=sin,
        slots=slots,
        tails=AdaptedRows(first, tails if prompts.joined else None),
        prefix_keys=prefix,
        prompt_slots=longest,
        tail_rows=t,
    )


def _seen_by_tails(prompts: StagedPrompts, samples: int, prefix: int) -> Tensor:
    """The known prefix, the real rows of the prompt, and of the own tail what that shows.

    Returns:
        `[B, 1, M·t, C + P + M·t]` bool.
    """
    t, batch, device = len(prompts.tail.ids), len(prompts.lengths), prompts.ids.device
    row = torch.arange(samples * t, device=device)
    own = (row[:, None] // t == row // t) & prompts.tail.visible.repeat(samples, samples)
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
        ends: `[B, A]`, the slots of each sequence that are read off.
        end_rows: `[B·A]`, their rows.
        cos, sin: rotary embedding, `[1, 1, T, head_dim]`; behind a cue with a trie `[B, 1, T, …]`.
        visible: `[B, 1, T, C + T]` bool, which keys each row sees; None: plain causal attention.
        slots: of joined rows.
        before: C, keys without rows, the same number for each.
    """

    ends: Tensor
    end_rows: Tensor
    cos: Tensor
    sin: Tensor
    visible: Tensor | None
    slots: Slots | None
    before: int

    @classmethod
    def of(cls, prompts: StagedPrompts, rotary: Rotary, before: int = 0) -> Self:
        """Lays out prompts that were staged for `all_tokens`, on their device."""
        nodes, longest = prompts.tail.nodes, prompts.longest
        lengths = prompts.lengths.clamp_min(1 + nodes)
        slot = torch.arange(longest, device=lengths.device)
        cos, sin = rotary(before + (_positions(prompts, slot) if nodes else slot[None]))
        rows = prompts.ids.numel()
        starts = prompts.starts.clamp_max(rows - 1 - nodes)  # of an empty prompt at the end
        answers = torch.arange(-1 - nodes, 0, device=lengths.device)
        return cls(
            ends=lengths[:, None] + answers,
            end_rows=((starts + lengths)[:, None] + answers).flatten(),
            cos=cos,
            sin=sin,
            visible=_seen_in_sequence(prompts, slot, before) if nodes else None,
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
        return x.reshape(-1, len(self.ends) * x.shape[1], x.shape[2])

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Of all rows, `[L · B, heads, T, head_dim]`."""
        if self.visible is None:
            return causal_attention(query, key, value)
        mask = layer_mask(self.visible, query).repeat(len(query) // len(self.ends), 1, 1, 1)
        return masked_attention(query, key, value, mask)

    def rotary(self, times: int) -> tuple[Tensor, Tensor]:
        """`cos` and `sin` of all rows, L times."""
        if len(self.cos) == 1:
            return self.cos, self.sin
        return self.cos.repeat(times, 1, 1, 1), self.sin.repeat(times, 1, 1, 1)

    def last_rotary(self, samples: int) -> tuple[Tensor, Tensor]:
        """`cos` and `sin` of the rows that are read off, `[M · B, 1, A, head_dim]`."""
        at = self.ends
        each = torch.arange(len(at), device=at.device)[:, None] if len(self.cos) > 1 else 0
        cos, sin = self.cos[each, 0, at], self.sin[each, 0, at]  # [B, A, head_dim]
        return cos.repeat(samples, 1, 1)[:, None], sin.repeat(samples, 1, 1)[:, None]

    def last_visible(self, samples: int) -> Tensor:
        """Which keys these rows see, `[M · B, 1, A, C + T]`, as `layer_mask` has it."""
        if self.visible is None:
            key = torch.arange(self.before + self.cos.shape[2], device=self.ends.device)
            seen = key <= self.before + self.ends[:, :, None]
        else:
            each = torch.arange(len(self.ends), device=self.ends.device)[:, None]
            seen = self.visible[each, 0, self.ends]
        return layer_mask(seen.repeat(samples, 1, 1)[:, None], self.cos)


def _positions(prompts: StagedPrompts, slot: Tensor) -> Tensor:
    """Of sequences that end in a trie, `[B, T]`; those of padding have no meaning."""
    t = len(prompts.tail.ids)
    tail_starts = prompts.lengths[:, None] - t
    in_tail = slot - tail_starts
    depths = prompts.tail.depths[in_tail.clamp(0, t - 1)]
    return torch.where(in_tail < 0, slot, tail_starts + depths).clamp_min(0)


def _seen_in_sequence(prompts: StagedPrompts, slot: Tensor, before: int) -> Tensor:
    """The rows so far, and of those in the tail what that shows, `[B, 1, T, C + T]` bool."""
    t = len(prompts.tail.ids)
    in_tail = slot - (prompts.lengths[:, None] - t)  # [B, T]
    inside, place = (in_tail >= 0) & (in_tail < t), in_tail.clamp(0, t - 1)
    shown = prompts.tail.visible[place[:, :, None], place[:, None, :]]
    both = inside[:, :, None] & inside[:, None, :]
    seen = (slot[:, None] >= slot) & (shown | ~both)
    return F.pad(seen, (before, 0), value=True)[:, None]
