"""What a forward is given, brought to the device in one go, so that the host never waits for it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from dalorra.forward.network import Answers
from dalorra.forward.reference_rows import right_padded
from dalorra.prompts import Prompt, Scope


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor on `device`; a GPU reads it from pinned memory while the host goes on."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True, slots=True, eq=False)
class StagedPrompts:
    """B prompts with the same cue, as a forward reads them: each in a row of its own, or joined.

    Under `answer_tokens` prompts without their known prefixes; under `all_tokens` prompts and cues.

    Attributes:
        ids: token ids, `[B, P]` padded on the right; joined, one after the other, `[1, N]`.
        lengths: `[B]`, tokens of each that are no padding.
        known: `[B]`, tokens before those, whose keys and values are known.
        cue_ids: `[k]`.
        longest: P, tokens of the longest.
        joined: whether the ids are one sequence.
    """

    ids: Tensor
    lengths: Tensor
    known: Tensor
    cue_ids: Tensor
    longest: int
    joined: bool

    @classmethod
    def of(
        cls,
        prompts: Sequence[Prompt],
        scope: Scope,
        known: Sequence[int] | None = None,
        *,
        joined: bool = False,
    ) -> Self:
        """On the host.

        Args:
            prompts: B prompts with the same cue.
            scope: which rows the adapter acts on.
            known: how many tokens of each prompt have keys already; None: none.
            joined: whether to join them.
        """
        cue = prompts[0].cue_ids
        if scope == "all_tokens":
            sequences = [(*prompt.prompt_ids, *cue) for prompt in prompts]
        elif known:
            sequences = [p.prompt_ids[start:] for p, start in zip(prompts, known, strict=True)]
        else:
            sequences = [prompt.prompt_ids for prompt in prompts]
        if joined:
            ids = torch.tensor(list(chain.from_iterable(sequences)), dtype=torch.long)[None]
            lengths = torch.tensor([len(sequence) for sequence in sequences])
        else:
            ids, lengths = right_padded(sequences)
        before = torch.tensor(known) if known else torch.zeros_like(lengths)
        longest = max(map(len, sequences))
        return cls(ids, lengths, before, torch.tensor(cue), longest, joined)

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        return replace(
            self,
            ids=to_device(self.ids, device),
            lengths=to_device(self.lengths, device),
            known=to_device(self.known, device),
            cue_ids=to_device(self.cue_ids, device),
        )

    @property
    def starts(self) -> Tensor:
        """`[B]`, place of each prompt's first token in the flattened ids."""
        if self.joined:
            return self.lengths.cumsum(0) - self.lengths
        return torch.arange(len(self.lengths), device=self.ids.device) * self.longest

    def copy_(self, others: "StagedPrompts") -> None:
        """Overwrites the tensors by others of the same shape."""
        self.ids.copy_(others.ids)
        self.lengths.copy_(others.lengths)
        self.known.copy_(others.known)
        self.cue_ids.copy_(others.cue_ids)

    def pieces(self, tokens: int) -> Iterator[Self]:
        """Prompts of one length cut into this many tokens each; what is left comes last."""
        for start in range(0, self.longest, tokens):
            ids = self.ids[:, start : start + tokens]
            count = ids.shape[1]
            yield replace(
                self,
                ids=ids,
                lengths=torch.full_like(self.lengths, count),
                known=self.known + start,
                longest=count,
            )

    def padded(self, batch: int, tokens: int, longest: int) -> Self:
        """With empty prompts up to B = `batch`, and padding.

        Args:
            batch: as many as there are, at least.
            tokens: N of joined prompts; without meaning for others.
            longest: P.
        """
        more = batch - len(self.lengths)
        if self.joined:
            ids = F.pad(self.ids, (0, tokens - self.ids.shape[1]))
        else:
            ids = F.pad(self.ids, (0, longest - self.longest, 0, more))
        return replace(
            self,
            ids=ids,
            lengths=F.pad(self.lengths, (0, more)),
            known=F.pad(self.known, (0, more)),
            longest=longest,
        )


Forward = Callable[[StagedPrompts], Answers]
"""Answers to prompts of one shape."""

Recorder = Callable[[Forward, StagedPrompts], Forward]
"""Records what a forward does to prompts of this shape; what it returns does the same again."""
