"""Which row of a forward carries which token under which sample: the packed layouts.

`answer_tokens`: the adapter acts on the cue alone, so the prompt is the same under every sample
and is computed once; the cue follows it once for each sample, in the same sequence:

    [prompt | cue under z_1 | cue under z_2 | … | cue under z_M]      T − k + M·k rows instead of T

Position ids restart at T − k for each cue; a cue attends to the prompt and to itself only.
This equals M separate forwards to rounding: no row sees anything that it would not see alone.

`all_tokens`: the adapter touches every token, so each sample is a sequence of its own: M·B
sequences of T rows.

Behind the cue lie the rows of a trie where labels have several tokens (`dalorra.labels`): a row of
it sees what the end of the cue does, and its ancestors.

Ragged prompts are padded on the left, so that the cues of a batch line up. Where labels come with
each prompt their tries are ragged, too: shorter ones are padded behind their last row, with rows
that no other sees.

An encoder knows `all_tokens` alone. Its rows see each other in both directions, its answer is read
off the first of them, and its texts are padded on the right (`pack_texts`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from dalorra.labels import tail_of
from dalorra.prompts import Prompt, Scope


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Input of one forward for B prompts under M samples each.

    Attributes:
        input_ids: `[batch, rows]`; batch is B (`answer_tokens`) or B·M (`all_tokens`).
        position_ids: `[batch, rows]`.
        attention_mask: `[batch, 1, rows, keys]` bool, True where a row sees a key.
        sample_index: `[batch or 1, rows or 1]`, the sample a row runs under, −1 for rows of
            the frozen base alone.
        answer_rows: `[answers]`, the rows that end a cue and those of the trie behind it, or that
            begin an encoder's text; batch · answers = B · M · A, A of the largest trie.
        samples: `[B or 1, M]`, those of each prompt.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    sample_index: Tensor
    answer_rows: Tensor
    samples: Tensor

    def to(self, device: torch.device) -> "PackedRows":
        """The same rows on another device."""
        return PackedRows(*(getattr(self, field.name).to(device) for field in fields(self)))

    @property
    def adapted(self) -> Tensor:
        """`[batch, rows]` bool, the rows that the adapter acts on; padding is none of them."""
        seen = self.attention_mask[:, 0, self.answer_rows].any(dim=1)  # [batch, keys]
        return (self.sample_index >= 0) & seen[:, -self.input_ids.shape[1] :]

    def after(self, prompt_rows: int) -> "PackedRows":
        """The rows behind the first `prompt_rows`, whose keys and values come from a cache."""
        return PackedRows(
            self.input_ids[:, prompt_rows:],
            self.position_ids[:, prompt_rows:],
            self.attention_mask[:, :, prompt_rows:],
            self.sample_index[:, prompt_rows:],
            self.answer_rows - prompt_rows,
            self.samples,
        )


def pack(
    prompts: Sequence[Prompt], samples: Sequence[int] | range | Tensor, scope: Scope
) -> PackedRows:
    """Lays out prompts under samples of a bank, on the CPU.

    Args:
        prompts: B prompts with the same cue.
        samples: M of them that every prompt runs under, or `[B, M]` for each its own.
        scope: which rows the adapter acts on.
    """
    table = _sample_table(samples)
    pack_all = _pack_sequences if scope == "all_tokens" else _pack_cues
    return pack_all(prompts, _tails_of(prompts), table)


def pack_texts(prompts: Sequence[Prompt], samples: Sequence[int] | range | Tensor) -> PackedRows:
    """Lays out an encoder's texts under samples of a bank, on the CPU: B · M sequences, by text.

    Args:
        prompts: B texts.
        samples: see `pack`.
    """
    table = _sample_table(samples)
    count = table.shape[1]
    input_ids, lengths = right_padded([(*p.prompt_ids, *p.cue_ids) for p in prompts])
    longest = input_ids.shape[1]  # T
    real = torch.arange(longest) < lengths[:, None]  # [B, T]
    visible = real.repeat_interleave(count, dim=0)[:, None, None]  # every row sees the same keys
    return PackedRows(
        input_ids.repeat_interleave(count, dim=0),
        torch.arange(longest).expand(len(prompts) * count, -1),
        visible.expand(-1, -1, longest, -1),
        table.expand(len(prompts), -1).reshape(-1, 1),
        torch.tensor([0]),
        table,
    )


def right_padded(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids `[B, longest]`, and lengths `[B]`."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    ids = torch.zeros((len(sequences), int(lengths.max())), dtype=torch.long)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence)] = torch.tensor(sequence, dtype=torch.long)
    return ids, lengths


def _sample_table(samples: Sequence[int] | range | Tensor) -> Tensor:
    """`[B or 1, M]`."""
    return samples if isinstance(samples, Tensor) else torch.tensor(list(samples))[None]


@dataclass(frozen=True, slots=True)
class _Tails:
    """What follows each of B prompts, one for all where it is the same; see `dalorra.labels.Tail`.

    Attributes:
        ids, depths: `[B or 1, t]`.
        visible: `[B or 1, t, t]`.
        nodes: of the largest trie.
    """

    ids: Tensor
    depths: Tensor
    visible: Tensor
    nodes: int


def _tails_of(prompts: Sequence[Prompt]) -> _Tails:
    """Padding stands where the cue ends, and sees what is seen from there."""
    first = prompts[0]
    same = all(prompt.trie is first.trie for prompt in prompts)
    tails = [tail_of(prompt.cue_ids, prompt.trie) for prompt in ([first] if same else prompts)]
    end, longest = len(first.cue_ids) - 1, max(len(tail.ids) for tail in tails)
    ids = torch.zeros((len(tails), longest), dtype=torch.long)
    depths = torch.full((len(tails), longest), end)
    visible = torch.zeros((len(tails), longest, longest), dtype=torch.bool)
    for b, tail in enumerate(tails):
        t = len(tail.ids)
        ids[b, :t], depths[b, :t] = tail.ids, tail.depths
        visible[b, :t, :t] = tail.visible
        visible[b, t:] = visible[b, end]
    return _Tails(ids, depths, visible, max(tail.nodes for tail in tails))


def _pack_cues(prompts: Sequence[Prompt], tails: _Tails, samples: Tensor) -> PackedRows:
    t, count = tails.ids.shape[1], samples.shape[1]
    longest = max(len(prompt.prompt_ids) for prompt in prompts)  # P
    input_ids, position_ids, padding = _left_padded(
        [prompt.prompt_ids for prompt in prompts], longest, extra=count * t
    )
    lengths = torch.tensor([len(prompt.prompt_ids) for prompt in prompts])
    input_ids[:, longest:] = tails.ids.repeat(1, count)
    position_ids[:, longest:] = lengths[:, None] + tails.depths.repeat(1, count)

    # A row sees earlier rows of the prompt, and of the tail under its own sample what that shows.
    visible = _causal(longest + count * t, len(tails.ids))
    visible[:, longest:, longest:] = False
    for start in range(longest, visible.shape[-1], t):
        visible[:, start : start + t, start : start + t] = tails.visible
    ends = t * torch.arange(1, count + 1)[:, None] - torch.arange(1 + tails.nodes).flip(0) - 1
    return PackedRows(
        input_ids,
        position_ids,
        _without_padding(visible, padding),
        torch.nn.functional.pad(samples.repeat_interleave(t, dim=1), (longest, 0), value=-1),
        longest + ends.flatten(),
        samples,
    )


def _pack_sequences(prompts: Sequence[Prompt], tails: _Tails, samples: Tensor) -> PackedRows:
    t, count = tails.ids.shape[1], samples.shape[1]
    lengths = torch.tensor([len(prompt.prompt_ids) for prompt in prompts])
    longest = int(lengths.max()) + t  # T, and the rows of the trie
    input_ids, position_ids, padding = _left_padded(
        [prompt.prompt_ids for prompt in prompts], longest - t, extra=t
    )
    input_ids[:, longest - t :] = tails.ids
    position_ids[:, longest - t :] = lengths[:, None] + tails.depths
    visible = _causal(longest, len(tails.ids))
    visible[:, longest - t :, longest - t :] = tails.visible
    return PackedRows(
        input_ids.repeat_interleave(count, dim=0),
        position_ids.repeat_interleave(count, dim=0),
        _without_padding(visible, padding).repeat_interleave(count, dim=0),
        samples.expand(len(prompts), -1).reshape(-1, 1),
        torch.arange(longest - 1 - tails.nodes, longest),
        samples,
    )


def _causal(rows: int, batch: int) -> Tensor:
    """`[batch, rows, rows]` bool."""
    return torch.ones((rows, rows), dtype=torch.bool).tril().repeat(batch, 1, 1)


def _left_padded(
    sequences: Sequence[Sequence[int]], longest: int, extra: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, position ids and padding flags, `[B, longest + extra]` each."""
    input_ids = torch.zeros((len(sequences), longest + extra), dtype=torch.long)
    position_ids = torch.zeros_like(input_ids)
    padding = torch.zeros_like(input_ids, dtype=torch.bool)
    for b, sequence in enumerate(sequences):
        start = longest - len(sequence)
        input_ids[b, start:longest] = torch.tensor(sequence, dtype=torch.long)
        position_ids[b, start:longest] = torch.arange(len(sequence))
        padding[b, :start] = True
    return input_ids, position_ids, padding


def _without_padding(visible: Tensor, padding: Tensor) -> Tensor:
    """Hides padding in front, `[B or 1, rows, rows]` and `[B, rows]` → `[B, 1, rows, rows]`.

    A row of it still sees itself, or its softmax would divide by zero.
    """
    own = torch.eye(visible.shape[-1], dtype=torch.bool) & padding[:, :, None]
    return ((visible & ~padding[:, None, :]) | own)[:, None]
