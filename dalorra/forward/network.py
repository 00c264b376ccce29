"""What a predictor needs of a network: prompts and members of a bank in, distributions out.

There are two: `PackedLlama` for language models, and `EncoderNetwork`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dalorra.posteriors.bank import NoiseBank
from dalorra.prompts import Prompt, Scope


@dataclass(frozen=True, slots=True)
class Answers:
    """What a forward of B prompts under M samples said.

    Attributes:
        probabilities: over the labels, `[B, M, S, K]` float32: M passes, each under S weighted
            masks of the head; S is 1 where the head is sampled with the rest, or has no mask.
        weights: `[S]`, sums to 1.
        features: what the labels are read off, `[B, M, d]` float32.
    """

    probabilities: Tensor
    weights: Tensor
    features: Tensor


class Network(Protocol):
    """One adapter on its base."""

    @property
    def joins_prompts(self) -> bool:
        """Whether prompts of several lengths are padded in attention alone."""
        ...

    @property
    def nbytes(self) -> int:
        """Memory of the adapter beside the base."""
        ...

    def answers(
        self, prompts: Sequence[Prompt], members: range, bank: NoiseBank, scope: Scope
    ) -> Answers:
        """Every prompt under every one of these members."""
        ...

    def label_logits(
        self, prompts: Sequence[Prompt], members: range, bank: NoiseBank, scope: Scope
    ) -> Tensor:
        """Logits of the labels, every module under one sample, `[B, M, K]` float32."""
        ...
