"""Noise that depends on the context: a Gaussian r × r matrix between A and B (C-LoRA, section 3).

    noise(a) = E a,   E = I + m(a) + σ(a) ⊙ ε_m,   σ = sigmoid(g)²,   a = A x of one row

m and g `[r, r]` are the two halves of what a small network of the module says of a:

    (m, g) = W₂ relu(W₁ a + b₁) + b₂,   r → hidden → 2 r²

ε_m ~ N(0, I) `[r, r]` is the same for every token of a pass, so that an answer is reproducible and
independent of its batch. The update depends on the input, so no plain LoRA equals it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dalorra.errors import ConfigError
from dalorra.posteriors.bank import BankSpec, of_rows, refuse_mask_settings
from dalorra.posteriors.noise import ModuleTensors, RankNoise
from dalorra.posteriors.posterior import Posterior

Seen = dict[int, tuple[Tensor, Tensor]]
"""(m, log σ) of the rows of a forward, `[batch, rows, r, r]` each, by the number of the module.

What a module says first counts: a head is asked again for every piece of a vocabulary."""

_FIRST_OUTPUT = 0.1
"""Size of W₂ at first, as a share of the usual one: small beside the prior, but with a gradient."""


class ContextualMatrix(Posterior):
    """E given the row is N(I + m, diag σ²); a new adapter has m ≈ 0 and σ ≈ that of the prior.

    Attributes:
        hidden: width of the network.
        prior_deviation: of the prior N(I, s²), where σ starts. Of no meaning for a trained
            adapter.
    """

    hidden: int = Field(default=64, ge=1)
    prior_deviation: float = Field(default=0.2, gt=0.0, lt=1.0)

    def tensors(self, down: Tensor) -> dict[str, Tensor]:
        """W₁ `[hidden, r]`, b₁ `[hidden]`, W₂ `[2 r², hidden]`, b₂ `[2 r²]`."""
        rank, width = down.shape[0], self.hidden
        root = math.sqrt(self.prior_deviation)
        no_mean = down.new_zeros(rank * rank)
        return {
            "context_in": _uniform(down, (width, rank), rank**-0.5),
            "context_in_bias": _uniform(down, (width,), rank**-0.5),
            "context_out": _uniform(down, (2 * rank * rank, width), _FIRST_OUTPUT * width**-0.5),
            "context_out_bias": torch.cat([no_mean, no_mean + math.log(root / (1.0 - root))]),
        }

    def bank(self, modules: Sequence[ModuleTensors], spec: BankSpec) -> "ContextBank":
        refuse_mask_settings(spec, "a contextual matrix")
        return self.draw(modules, spec.samples, torch.Generator().manual_seed(spec.seed))

    def draw(
        self,
        modules: Sequence[ModuleTensors],
        samples: int,
        generator: torch.Generator,
        seen: Seen | None = None,
    ) -> "ContextBank":
        """A bank of that many samples, which notes what it says of each row in `seen`."""
        rank = modules[0]["down"].shape[0]
        noise = [
            torch.randn((samples, rank, rank), generator=generator).to(m["down"].device)
            for m in modules
        ]
        return ContextBank(tuple(noise), tuple(modules), seen)

    def mean(self, modules: Sequence[ModuleTensors]) -> "ContextBank":
        """ε = 0: E = I + m(a), which depends on the input as before."""
        down = modules[0]["down"]
        silent = down.new_zeros((1, down.shape[0], down.shape[0]))
        return ContextBank((silent,) * len(modules), tuple(modules))


@dataclass(frozen=True, slots=True, eq=False)
class ContextBank:
    """M samples of the noise of each module's matrix.

    Attributes:
        epsilon: per module `[M, r, r]`.
        modules: whose networks say what the noise is added to, and how strong it is.
        seen: where the products note (m, log σ), for the KL; None: nowhere.
    """

    epsilon: tuple[Tensor, ...]
    modules: tuple[ModuleTensors, ...]
    seen: Seen | None = None

    @property
    def samples(self) -> int:
        return self.epsilon[0].shape[0]

    @property
    def head_probabilities(self) -> None:
        return None

    def noise(self, sample_index: Tensor) -> list[RankNoise]:
        on = (sample_index >= 0)[..., None]
        return [
            _ContextNoise(of_rows(epsilon, sample_index), on, module, number, self.seen)
            for number, (epsilon, module) in enumerate(zip(self.epsilon, self.modules, strict=True))
        ]

    def plain(self, sample: int, modules: Sequence[ModuleTensors]) -> NoReturn:
        raise ConfigError(
            "a c_lora adapter is no plain LoRA, because its update depends on the input: serve it "
            "with `dalorra serve`"
        )


@dataclass(frozen=True, slots=True, eq=False)
class _ContextNoise:
    """`RankNoise` of one module, in float32 whatever the model's precision.

    Attributes:
        epsilon: `[batch or 1, rows or 1, r, r]`.
        on: `[batch or 1, rows or 1, 1]`, False for no update at all.
        number: of the module.
    """

    epsilon: Tensor
    on: Tensor
    module: ModuleTensors
    number: int
    seen: Seen | None

    def __call__(self, activations: Tensor, inputs: Tensor) -> Tensor:
        a = activations.float()  # [.., rows, r]
        m, g = self._context(a)
        matrix = m + torch.sigmoid(g).square() * self.epsilon  # E − I
        if self.seen is not None:
            self.seen.setdefault(self.number, (m, 2.0 * F.logsigmoid(g)))
        moved = a + (matrix * a[..., None, :]).sum(dim=-1)
        return (moved * self.on).to(activations.dtype)

    def _context(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """What the network says: m and g, `[.., rows, r, r]` each."""
        w = {name: self.module[name].float() for name in _NETWORK}
        hidden = F.relu(F.linear(a, w["context_in"], w["context_in_bias"]))
        out = F.linear(hidden, w["context_out"], w["context_out_bias"])
        m, g = out.unflatten(-1, (2, a.shape[-1], a.shape[-1])).unbind(dim=-3)
        return m, g


_NETWORK = ("context_in", "context_in_bias", "context_out", "context_out_bias")


def _uniform(like: Tensor, shape: tuple[int, ...], bound: float) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device).uniform_(-bound, bound)
