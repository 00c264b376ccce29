"""A bank's noise, arranged once for the fused projections that it acts on."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from dalorra.forward.llama.head import HeadNoise, LabelHead
from dalorra.forward.llama.projection import FusedProjection
from dalorra.posteriors.bank import NoiseBank
from dalorra.posteriors.noise import RankNoise
from dalorra.prompts import Scope

Noise = Sequence[RankNoise | None]
"""One per projection of a layer, None where nothing is adapted."""

_KEPT: Final = 64  # arrangements: one for each bank and split of M


@dataclass(frozen=True, slots=True, eq=False)
class ForwardNoise:
    """The noise of forwards of one shape.

    Attributes:
        scope: which rows it acts on.
        copies: M.
        layers: noise of each layer.
        head: of the output projection.
    """

    scope: Scope
    copies: int
    layers: Sequence[Noise]
    head: HeadNoise

    @property
    def first(self) -> int:
        """The first layer with a stochastic product; the number of layers when there is none."""
        noisy = (i for i, noise in enumerate(self.layers) if any(n is not None for n in noise))
        return next(noisy, len(self.layers))


class BoundNoise:
    """Noise by layer and projection, remembered for as long as it is in use.

    Args:
        layers: projections of each layer in order of use; the last layer has its query apart.
        head: the output projection.
        like: a tensor of the model's device and precision.
    """

    def __init__(
        self, layers: Sequence[Sequence[FusedProjection]], head: LabelHead, like: Tensor
    ) -> None:
        self._layers = layers
        self._head = head
        self._device, self._dtype = like.device, like.dtype
        self._kept: OrderedDict[tuple[Any, ...], tuple[NoiseBank, ForwardNoise]] = OrderedDict()

    def bind(self, bank: NoiseBank, members: range, scope: Scope, cue_tokens: int) -> ForwardNoise:
        """For forwards of any number of prompts under each of these members.

        Args:
            bank: of the adapter.
            members: M of them.
            scope: which rows the noise acts on.
            cue_tokens: k; without meaning under `all_tokens`.
        """
        cues = scope == "answer_tokens"
        key = (id(bank), members, scope, cue_tokens if cues else 0)
        if key not in self._kept:
            each = torch.tensor(list(members), device=self._device)
            layers = (
                self._on_cues(bank, each, cue_tokens) if cues else self._on_sequences(bank, each)
            )
            bound = ForwardNoise(scope, len(members), layers, self._head.bind(bank, members))
            self._kept[key] = (bank, bound)  # the reference keeps id(bank) from being reused
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return self._kept[key][1]

    def _on_cues(self, bank: NoiseBank, members: Tensor, k: int) -> list[Noise]:
        """M copies of a k-token cue; in the last layer key and value alone need all their rows."""
        on_rows = bank.noise(members.repeat_interleave(k)[None])
        on_ends = bank.noise(members[None])
        query, key_value, *rest = self._layers[-1]
        last = [
            *self._of((query,), on_ends),
            *self._of((key_value,), on_rows),
            *self._of(rest, on_ends),
        ]
        return [*(self._of(projections, on_rows) for projections in self._layers[:-1]), last]

    def _on_sequences(self, bank: NoiseBank, members: Tensor) -> list[Noise]:
        """All rows of all prompts under each member, `[M, rows, …]`."""
        noise = bank.noise(members[:, None])
        return [self._of(projections, noise) for projections in self._layers]

    def _of(
        self, projections: Sequence[FusedProjection], noise: Sequence[RankNoise]
    ) -> list[RankNoise | None]:
        return [projection.noise(noise, self._dtype) for projection in projections]
