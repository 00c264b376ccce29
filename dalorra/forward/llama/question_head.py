"""The output projection where every question has options of its own.

Options of one token each are told apart by the softmax over these tokens, as `LabelHead` does it,
so that the head's mask can be integrated. Options of several tokens need the whole vocabulary at
every row of their trie: that is read once for all questions, under the samples of the rest.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from dalorra.adapter.layer import LowRankUpdate
from dalorra.forward.llama.head import HeadNoise, integrated
from dalorra.forward.llama.trie_head import Vocabulary
from dalorra.labels import LabelTrie, PathSums
from dalorra.posteriors.bank import NoiseBank
from dalorra.posteriors.noise import base_only

_KEPT: Final = 64
"""Tries that are kept: the same questions are asked about many states."""


class QuestionHead:
    """Maps hidden states at the rows of each question's options to their probabilities.

    The E rows of all questions lie one behind the other, those of a question in the order of its
    trie: the end of the cue, and the nodes.

    Args:
        weight: of the output projection, `[vocabulary, d]`.
        update: the adapter's; None where the output projection is not adapted.
    """

    def __init__(self, weight: Tensor, update: LowRankUpdate | None) -> None:
        self._vocabulary = Vocabulary(weight, update)
        self._device = weight.device
        self._sums = lru_cache(_KEPT)(lambda trie: PathSums.of(trie, self._device))

    @property
    def nbytes(self) -> int:
        """Memory of the update."""
        return self._vocabulary.nbytes

    def bind(self, bank: NoiseBank, samples: range) -> HeadNoise:
        """The head's noise for these samples, M of the bank's: of `[M, rows, r]`."""
        one = torch.ones(1, device=self._device)
        if self._vocabulary.update is None:
            return HeadNoise(base_only, one)
        each = torch.tensor(list(samples), device=self._device)
        return HeadNoise(bank.noise(each[:, None])[-1], one)

    def integrated(self, bank: NoiseBank) -> HeadNoise | None:
        """See `head.integrated`; None where the head is not adapted."""
        return None if self._vocabulary.update is None else integrated(bank)

    def logits(
        self, states: Tensor, tries: Sequence[LabelTrie], sampled: HeadNoise
    ) -> list[Tensor]:
        """`[M, E, d]` → of each question's options `[M, K]` float32, all under the same sample.

        Options of one token each have the logits of these tokens, others log-probabilities.
        """
        return [logits[:, 0] for logits in self._logits(states, tries, sampled, None)]

    def probabilities(
        self,
        states: Tensor,
        tries: Sequence[LabelTrie],
        sampled: HeadNoise,
        every: HeadNoise | None,
    ) -> list[tuple[Tensor, Tensor]]:
        """Distributions over each question's options.

        Args:
            states: after the final norm, `[M, E, d]`.
            tries: of the questions.
            sampled: see `bind`.
            every: all masks of the head, which options of one token each are integrated over.

        Returns:
            `[M, S, K]` float32 of each question, and the weights of the S masks, `[S]`.
        """
        found = self._logits(states, tries, sampled, every)
        return [
            (
                logits.softmax(dim=-1),
                (sampled if every is None or trie.nodes else every).weights,
            )
            for logits, trie in zip(found, tries, strict=True)
        ]

    def _logits(
        self,
        states: Tensor,
        tries: Sequence[LabelTrie],
        sampled: HeadNoise,
        every: HeadNoise | None,
    ) -> list[Tensor]:
        """`[M, S, K]` of each question."""
        x, update = states.float(), self._vocabulary.update
        down = x if update is None else F.linear(x, update.down)  # [M, E, r]
        activations = sampled.noise(down, x)
        ends = list(accumulate(trie.rows for trie in tries))
        places = [slice(end - trie.rows, end) for trie, end in zip(tries, ends, strict=True)]
        normalisers = self._normalisers(x, activations, tries, places)
        found = []
        for trie, place in zip(tries, places, strict=True):
            sums, own = self._sums(trie), activations[:, place]
            if every is not None and not trie.nodes:
                own = every.noise(down[:, place], x[:, place])  # [M, S, r]
            logits = F.linear(x[:, place], self._vocabulary.rows(sums.tokens))
            if update is not None:
                logits = logits + F.linear(own * update.scale, update.up[sums.tokens])
            found.append(
                sums(logits, normalisers[:, place])[:, None]
                if trie.nodes
                else logits[..., sums.places]
            )
        return found

    def _normalisers(
        self,
        x: Tensor,
        activations: Tensor,
        tries: Sequence[LabelTrie],
        places: Sequence[slice],
    ) -> Tensor:
        """`[M, E]`; without meaning for questions that need none."""
        found = x.new_zeros(x.shape[:2])
        wanted = [
            row
            for trie, place in zip(tries, places, strict=True)
            if trie.nodes
            for row in range(place.start, place.stop)
        ]
        if wanted:
            rows = torch.tensor(wanted, device=self._device)
            update = self._vocabulary.update
            own = None if update is None else activations[:, rows] * update.scale
            found[:, rows] = self._vocabulary.normalisers(x[:, rows], own)
        return found
