"""Rank masks that depend on the input (DALorRA's amortised variant, which has no equation there).

    noise(a) = z ⊙ a,   z = 1[u < π(a)],   π(a) = σ(φ + W a),   a = A x of one row

W `[r, r]` is zero at first: then π is σ(φ) for every input, and this is DALorRA. Under
`answer_tokens` the rows are those of the answer cue. u ~ Uniform(0, 1)^r is the same for every row
of a pass, so that an answer is reproducible and independent of its batch, and rows that agree on π
have the same mask. With ε = −logit u the condition is

    z = 1[φ + W a + ε > 0],   relaxed in training to σ((φ + W a + ε) / τ)

The update depends on the input, so no plain LoRA equals it. Rounding of A x turns the bits whose
φ + W a + ε is as small as that: one of them in a sample is a rank component more or less.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dalorra.errors import ConfigError
from dalorra.posteriors.bank import BankSpec, of_rows, refuse_mask_settings
from dalorra.posteriors.masks import Sampler, prior_logit, relaxed, uniform_noise, uniforms
from dalorra.posteriors.noise import ModuleTensors, RankNoise
from dalorra.posteriors.posterior import Posterior

SeenLogits = dict[int, Tensor]
"""φ + W a of the rows of a forward, `[batch, rows, r]`, by the number of the module."""


class AmortisedMasks(Posterior):
    """z_j given the row is Bernoulli(σ(φ_j + W_j a)); a new adapter has W = 0.

    Attributes:
        prior: p₀; q starts equal to it. Of no meaning for a trained adapter.
    """

    prior: float = Field(default=0.5, gt=0.0, lt=1.0)

    def tensors(self, down: Tensor) -> dict[str, Tensor]:
        """φ = logit p₀ `[r]`, and W = 0 `[r, r]`."""
        rank = down.shape[0]
        return {
            "mask_logits": torch.full_like(down[:, 0], prior_logit(self.prior)),
            "mask_context": down.new_zeros((rank, rank)),
        }

    def bank(self, modules: Sequence[ModuleTensors], spec: BankSpec) -> "AmortisedBank":
        refuse_mask_settings(spec, "masks that depend on the input")
        sampler: Sampler = "iid" if spec.sampler == "iid" else "stratified"
        shape = (len(modules), *modules[0]["mask_logits"].shape)
        u = uniforms(shape, spec.samples, torch.Generator().manual_seed(spec.seed), sampler)
        return AmortisedBank(uniform_noise(u).to(modules[0]["down"].device), tuple(modules))

    def mean(self, modules: Sequence[ModuleTensors]) -> "AmortisedBank":
        """π(a) in place of z, which depends on the input as before."""
        logits = torch.stack([m["mask_logits"] for m in modules])
        return AmortisedBank(torch.zeros_like(logits)[None], tuple(modules), temperature=1.0)


@dataclass(frozen=True, slots=True, eq=False)
class AmortisedBank:
    """M samples of the uniforms that decide each module's masks.

    Attributes:
        epsilon: −logit u, `[M, modules, r]` float32.
        modules: whose φ and W say what is added to it.
        temperature: τ of relaxed masks; None: hard ones.
        seen: where the masks note their logits, for the KL; None: nowhere.
    """

    epsilon: Tensor
    modules: tuple[ModuleTensors, ...]
    temperature: float | None = None
    seen: SeenLogits | None = None

    @property
    def samples(self) -> int:
        return self.epsilon.shape[0]

    @property
    def head_probabilities(self) -> None:
        return None

    def noise(self, sample_index: Tensor) -> list[RankNoise]:
        on = (sample_index >= 0)[..., None]
        rows = of_rows(self.epsilon, sample_index)  # [.., modules, r]
        return [
            _AmortisedMask(epsilon, on, self, number)
            for number, epsilon in enumerate(rows.unbind(dim=-2))
        ]

    def plain(self, sample: int, modules: Sequence[ModuleTensors]) -> NoReturn:
        raise ConfigError(
            "an amortised adapter is no plain LoRA, because its masks depend on the input: serve "
            "it with `dalorra serve`"
        )


@dataclass(frozen=True, slots=True, eq=False)
class _AmortisedMask:
    """`RankNoise` of one module; what decides is computed in float32.

    Attributes:
        epsilon: `[batch or 1, rows or 1, r]`.
        on: `[batch or 1, rows or 1, 1]`, False for no update at all.
        bank: that it is of.
        number: of the module.
    """

    epsilon: Tensor
    on: Tensor
    bank: AmortisedBank
    number: int

    def __call__(self, activations: Tensor, inputs: Tensor) -> Tensor:
        module = self.bank.modules[self.number]
        context = F.linear(activations.float(), module["mask_context"].float())
        logits = module["mask_logits"].float() + context  # [.., rows, r]
        if self.bank.seen is not None:
            self.bank.seen.setdefault(self.number, logits)
        decided = logits + self.epsilon
        tau = self.bank.temperature
        mask = (decided > 0.0).to(logits) if tau is None else relaxed(decided, tau)
        return activations * (mask * self.on).to(activations.dtype)
