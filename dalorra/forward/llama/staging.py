"""What a forward is given, brought to the device in one go, so that the host never waits for it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from dalorra.forward.network import Answers
from dalorra.forward.reference_rows import right_padded
from dalorra.labels import Tail, tail_of
from dalorra.prompts import Prompt, Scope


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor on `device`; a GPU reads it from pinned memory while the host goes on."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True, slots=True, eq=False)
class StagedPrompts:
    """B prompts with the same tail, as a forward reads them: each in a row of its own, or joined.

    The tail is the cue, and the rows of a trie where labels have several tokens. Under
    `answer_tokens` prompts without their known prefixes; under `all_tokens` prompts and tails.

    Attributes:
        ids: token ids, `[B, P]` padded on the right; joined, one after the other, `[1, N]`.
        lengths: `[B]`, tokens of each that are no padding.
        known: `[B]`, tokens before those, whose keys and values are known.
        tail: of t rows.
        longest: P, tokens of the longest.
        joined: whether the ids are one sequence.
    """

    ids: Tensor
    lengths: Tensor
    known: Tensor
    tail: Tail
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
            prompts: B prompts with the same cue and trie.
            scope: which rows the adapter acts on.
            known: how many tokens of each prompt have keys already; None: none.
            joined: whether to join them.
        """
        tail = tail_of(prompts[0].cue_ids, prompts[0].trie)
        if scope == "all_tokens":
            tail_ids = tail.ids.tolist()
            sequences = [(*prompt.prompt_ids, *tail_ids) for prompt in prompts]
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
        return cls(ids, lengths, before, tail, longest, joined)

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        return replace(
            self,
            ids=to_device(self.ids, device),
            lengths=to_device(self.lengths, device),
            known=to_device(self.known, device),
            tail=self.tail.on(device),
        )

    @property
    def answers(self) -> int:
        """A, rows at the end of each tail that are read off."""
        return 1 + self.tail.nodes

    @property
    def starts(self) -> Tensor:
        """`[B]`, place of each prompt's first token in the flattened ids."""
        if self.joined:
            return self.lengths.cumsum(0) - self.lengths
        return torch.arange(len(self.lengths), device=self.ids.device) * self.longest

    def copy_(self, others: "StagedPrompts") -> None:
        """Overwrites the prompts by others of the same shape and tail."""
        self.ids.copy_(others.ids)
        self.lengths.copy_(others.lengths)
        self.known.copy_(others.known)

    def pieces(self, tokens: int) -> Iterator[Self]:
        """Prompts of one length cut into this many tokens each; what is left comes last.

        A tail with a trie, in sequences of `all_tokens`, is the last piece whatever it takes.
        """
        whole = len(self.tail.ids) if self.tail.nodes else 0
        cuts = [*range(0, self.longest - whole, tokens), *([self.longest - whole] if whole else [])]
        for start, end in pairwise([*cuts, self.longest]):
            count = end - start
            yield replace(
                self,
                ids=self.ids[:, start:end],
                lengths=torch.full_like(self.lengths, count),
                known=self.known + start,
                tail=self.tail if end == self.longest else tail_of((), None),
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
