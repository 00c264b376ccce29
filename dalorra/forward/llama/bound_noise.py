"""A bank's noise, arranged once for the fused projections that it acts on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Protocol

import torch
from torch import Tensor

from dalorra.forward.llama.head import HeadNoise
from dalorra.forward.llama.projection import FusedProjection
from dalorra.posteriors.bank import NoiseBank
from dalorra.posteriors.noise import RankNoise
from dalorra.prompts import Scope

Noise = Sequence[RankNoise | None]
"""One per projection of a layer, None where nothing is adapted."""

_KEPT: Final = 64
"""Arrangements that are kept: under `all_tokens` a long prompt splits M its own way."""


class BoundHead(Protocol):
    """An output projection that noise acts on."""

    def bind(self, bank: NoiseBank, samples: range) -> HeadNoise:
        """Its noise for these samples."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ForwardNoise:
    """The noise of forwards of one shape.

    Attributes:
        scope: which rows it acts on.
        samples: M.
        layers: noise of each layer.
        head: of the output projection.
    """

    scope: Scope
    samples: int
    layers: Sequence[Noise]
    head: HeadNoise

    @property
    def first(self) -> int:
        """The first layer with a stochastic product; the number of layers when there is none."""
        noisy = (i for i, noise in enumerate(self.layers) if any(n is not None for n in noise))
        return next(noisy, len(self.layers))

    @property
    def none(self) -> "ForwardNoise":
        """Of the frozen base alone, which is the same under every sample."""
        layers = [[None] * len(noise) for noise in self.layers]
        return replace(self, samples=1, layers=layers)


class BoundNoise:
    """A bank's noise by layer and projection, for any number of prompts.

    Args:
        bank: of the adapter.
        scope: which rows the noise acts on.
        layers: projections of each layer in order of use; the last layer has its query apart.
        head: the output projection.
        like: a tensor of the model's device and precision.
        answers: A, rows at the end of a tail that are read off; without meaning under `all_tokens`.
    """

    def __init__(
        self,
        bank: NoiseBank,
        scope: Scope,
        layers: Sequence[Sequence[FusedProjection]],
        head: BoundHead,
        like: Tensor,
        answers: int = 1,
    ) -> None:
        self.bank = bank
        self.scope = scope
        self._layers = layers
        self._head = head
        self._answers = answers
        self._device, self._dtype = like.device, like.dtype
        self._of = lru_cache(_KEPT)(self._arranged)

    def of(self, samples: range, tail_rows: int) -> ForwardNoise:
        """For forwards under these samples; what was asked for lately is kept.

        Args:
            samples: M of the bank's.
            tail_rows: t; without meaning under `all_tokens`.
        """
        return self._of(samples, tail_rows if self.scope == "answer_tokens" else 0)

    def _arranged(self, samples: range, tail_rows: int) -> ForwardNoise:
        each = torch.tensor(list(samples), device=self._device)
        on_tails = self.scope == "answer_tokens"
        layers = self._on_tails(each, tail_rows) if on_tails else self._on_sequences(each)
        head = self._head.bind(self.bank, samples)
        return ForwardNoise(self.scope, len(samples), layers, head)

    def _on_tails(self, samples: Tensor, t: int) -> list[Noise]:
        """A tail of t rows under each; in the last layer key and value alone need them all."""
        on_rows = self.bank.noise(samples.repeat_interleave(t)[None])
        on_ends = self.bank.noise(samples.repeat_interleave(self._answers)[None])
        query, key_value, *rest = self._layers[-1]
        last = [
            *self._per((query,), on_ends),
            *self._per((key_value,), on_rows),
            *self._per(rest, on_ends),
        ]
        return [*(self._per(projections, on_rows) for projections in self._layers[:-1]), last]

    def _on_sequences(self, samples: Tensor) -> list[Noise]:
        """All rows of all prompts under each sample, `[M, rows, …]`."""
        noise = self.bank.noise(samples[:, None])
        return [self._per(projections, noise) for projections in self._layers]

    def _per(
        self, projections: Sequence[FusedProjection], noise: Sequence[RankNoise]
    ) -> list[RankNoise | None]:
        return [projection.noise(noise, self._dtype) for projection in projections]
