"""A bank's noise, arranged once for the fused projections that it acts on."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final, cast

import torch
from torch import Tensor

from dalorra.bank import NoiseBank
from dalorra.projection import FusedProjection
from dalorra.stochastic_lora import RankNoise

Noise = Sequence[RankNoise | None]
"""One per projection of a layer, None where nothing is adapted."""

_KEPT: Final = 64  # arrangements: one for each bank, split of M, and batch size of `all_tokens`


class BoundNoise:
    """Noise by layer and projection, remembered for as long as it is in use.

    Args:
        layers: projections of each layer in order of use; the last layer has its query apart.
        like: a tensor of the model's device and precision.
    """

    def __init__(self, layers: Sequence[Sequence[FusedProjection]], like: Tensor) -> None:
        self._layers = layers
        self._device, self._dtype = like.device, like.dtype
        self._kept: OrderedDict[tuple[Any, ...], tuple[NoiseBank, Any]] = OrderedDict()

    def for_cues(self, bank: NoiseBank, members: range, k: int) -> tuple[list[Noise], Noise]:
        """For M copies of a k-token cue: every layer's but the last, and the last layer's.

        In the last layer key and value are needed on all cue rows, the rest on their ends.
        """
        key = (id(bank), members, k)
        if key not in self._kept:
            each = torch.tensor(list(members), device=self._device)
            on_rows = bank.noise(each.repeat_interleave(k)[None])
            on_ends = bank.noise(each[None])
            rows = [self._of(projections, on_rows) for projections in self._layers[:-1]]
            query, key_value, *rest = self._layers[-1]
            ends = [
                *self._of((query,), on_ends),
                *self._of((key_value,), on_rows),
                *self._of(rest, on_ends),
            ]
            self._keep(key, bank, (rows, ends))
        return cast(tuple[list[Noise], Noise], self._kept[key][1])

    def for_sequences(self, bank: NoiseBank, members: range, batch: int) -> list[Noise]:
        """For B · M sequences that each run under one member, members inner."""
        key = (id(bank), members, "sequences", batch)
        if key not in self._kept:
            index = torch.tensor(list(members), device=self._device).repeat(batch)
            noise = bank.noise(index[:, None])
            self._keep(key, bank, [self._of(projections, noise) for projections in self._layers])
        return cast(list[Noise], self._kept[key][1])

    def _of(
        self, projections: Sequence[FusedProjection], noise: Sequence[RankNoise]
    ) -> list[RankNoise | None]:
        return [projection.noise(noise, self._dtype) for projection in projections]

    def _keep(self, key: tuple[Any, ...], bank: NoiseBank, bound: Any) -> None:
        self._kept[key] = (bank, bound)  # the reference keeps id(bank) from being reused
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
