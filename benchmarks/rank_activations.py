"""The rank activations A·x of a packed forward, which no answer carries."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dalorra.posteriors.bank import NoiseBank
from dalorra.posteriors.noise import ModuleTensors, RankNoise


@dataclass(frozen=True, slots=True, eq=False)
class ObservedBank:
    """A bank that keeps what its noise is applied to in one forward of `answer_tokens`.

    Attributes:
        bank: whose noise is applied.
        of_module: module → A·x at the end of the cue, mean over the samples, `[B, r]` float32.
    """

    bank: NoiseBank
    of_module: dict[int, Tensor] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        return self.bank.samples

    @property
    def head_probabilities(self) -> Tensor | None:
        return self.bank.head_probabilities

    @property
    def activations(self) -> Tensor:
        """Of every module that took part, in model order: `[B, Σr]`."""
        return torch.cat([self.of_module[module] for module in sorted(self.of_module)], dim=-1)

    def noise(self, sample_index: Tensor) -> list[RankNoise]:
        def observed(module: int, noise: RankNoise) -> RankNoise:
            def apply(activations: Tensor, inputs: Tensor) -> Tensor:
                tokens = activations.shape[1] // self.samples  # of the cue
                ends = activations[:, tokens - 1 :: tokens]
                self.of_module[module] = ends.float().mean(dim=1).cpu()
                return noise(activations, inputs)

            return apply

        return [observed(i, noise) for i, noise in enumerate(self.bank.noise(sample_index))]

    def plain(self, sample: int, modules: Sequence[ModuleTensors]) -> list[tuple[Tensor, Tensor]]:
        return self.bank.plain(sample, modules)
