"""What a predictor needs of a network: prompts in, distributions over the labels out.

There are two: `PackedLlama` for language models, and `EncoderNetwork`. Where the labels come with
each prompt, as the options of a question do, it is a `QuestionLlama`, which answers one by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from dalorra.posteriors.bank import NoiseBank
from dalorra.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Answers:
    """What a forward of B prompts under M samples said.

    Attributes:
        probabilities: over the labels, `[B, M, S, K]` float32: M samples, each under S weighted
            masks of the head; S is 1 where the head is sampled with the rest, or has no mask.
        weights: `[S]`, sums to 1.
        features: hidden states at the end of the cue, at D depths, `[B, M, D, d]` float32.
    """

    probabilities: Tensor
    weights: Tensor
    features: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The answers to the same prompts under the samples of all parts."""
        return cls(
            torch.cat([part.probabilities for part in parts], dim=1),
            parts[0].weights,
            torch.cat([part.features for part in parts], dim=1),
        )


class Network(Protocol):
    """One adapter on its base, under one bank."""

    @property
    def bank(self) -> NoiseBank:
        """What it runs under."""
        ...

    @property
    def pads(self) -> bool:
        """Whether prompts of several lengths are padded in every product."""
        ...

    @property
    def nbytes(self) -> int:
        """Memory of the adapter beside the base."""
        ...

    def under(self, bank: NoiseBank) -> "Network":
        """The same adapter under another bank."""
        ...

    def answers(self, prompts: Sequence[Prompt], samples: range) -> Answers:
        """Every prompt under every one of these samples of the bank, in one forward."""
        ...

    def in_pieces(self, prompt: Prompt, samples: range, budget: int) -> Answers:
        """`answers` to one prompt, in forwards of at most `budget` rows wherever that can be."""
        ...

    def label_logits(self, prompts: Sequence[Prompt], samples: range) -> Tensor:
        """Logits of the labels, every module under one sample, `[B, M, K]` float32.

        A trie's are the log-probabilities of the labels' tokens, not normalised over the labels.
        """
        ...
