"""DALorRA's amortised variant: masks whose probabilities are a function of the input.

The paper names it in appendix B.2 and gives no equation. Ours: q(z | row) = Bernoulli(σ(φ + W a))
with a = A x of the row, see `dalorra.posteriors.amortised`. A mask belongs to an example; what all
examples have in common, σ(φ), is its prior, and is itself held to p₀:

    mean over n of [ E_q(−log p(y_n | x_n, z)) + Σ_l mean over rows t of KL(π_l(a_nlt) ‖ σ(φ_l)) ]
        + (1 / N) Σ_l KL(σ(φ_l) ‖ p₀),        π_l(a) = σ(φ_l + W_l a)

At W = 0 the KLs of the examples are zero and the rest is DALorRA's objective (Eq. 4), in which all
examples share one mask. There training starts.

What this bounds. Let each example have one mask per module, z_nl ~ Bernoulli(σ(φ_l)). Where a
module says the same of every row of a pass, and so always when the adapter acts on one row alone,
the first line is with hard masks the exact negative ELBO of −log p(y_n | x_n; φ, A, B); a module's
q knows the masks below it through its input, which the chain rule of the KL allows. The second line
is then the penalty of a prior on the parameter φ. Where rows differ, their mean KL is an upper
bound of the KL of the mask's law pooled over the rows, since KL is convex. It bounds nothing about
the rows jointly, which share one u, see `training.methods.c_lora`. Relaxed masks make a surrogate
of all of it.

A label is at most log K nats of evidence, so an input moves its masks only as far as that pays.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from dalorra.forward.reference_rows import PackedRows
from dalorra.posteriors import AmortisedBank, AmortisedMasks
from dalorra.posteriors.bank import NoiseBank
from dalorra.posteriors.masks import bernoulli_kl, bernoulli_kl_between, logistic_noise
from dalorra.posteriors.noise import ModuleTensors
from training.methods.method import Method, mean_over_rows


class Amortised(Method):
    """Bernoulli masks with σ(φ + W A x) in the place of σ(φ).

    Attributes:
        prior: p₀, prior probability that a rank component is on.
        temperature: τ of the Gumbel-sigmoid.
        mask_learning_rate: of φ, which has no weight decay.
        context_learning_rate: of W, likewise.
    """

    title = "Bernoulli masks over rank components that depend on the input (amortised DALorRA)"

    name: Literal["amortised"] = "amortised"
    prior: float = Field(default=0.5, gt=0.0, lt=1.0)
    temperature: float = Field(default=0.5, gt=0.0)
    mask_learning_rate: float = Field(default=1e-2, ge=0.0)
    context_learning_rate: float = Field(default=1e-3, ge=0.0)

    def posterior(self) -> AmortisedMasks:
        return AmortisedMasks(prior=self.prior)

    def draw(
        self, modules: Sequence[ModuleTensors], samples: int, generator: torch.Generator
    ) -> AmortisedBank:
        logits = _logits(modules)
        noise = logistic_noise(logits.shape, samples, generator).to(logits)
        return AmortisedBank(noise, tuple(modules), self.temperature, seen={})

    def penalty(self, modules: Sequence[ModuleTensors]) -> Tensor:
        """KL(σ(φ) ‖ p₀), summed over every module and rank."""
        return bernoulli_kl(_logits(modules), self.prior)

    def example_penalty(self, bank: NoiseBank, rows: PackedRows) -> Tensor:
        """The modules' KLs from σ(φ), each a mean over the rows that the adapter acted on."""
        drawn = cast(AmortisedBank, bank)
        parts = [
            mean_over_rows(
                bernoulli_kl_between(logits, drawn.modules[number]["mask_logits"]).sum(dim=-1),
                rows.adapted,
            )
            for number, logits in (drawn.seen or {}).items()
        ]
        return torch.stack(parts).sum()

    @property
    def learning_rates(self) -> Mapping[str, float]:
        return {
            "mask_logits": self.mask_learning_rate,
            "mask_context": self.context_learning_rate,
        }


def _logits(modules: Sequence[ModuleTensors]) -> Tensor:
    return torch.stack([module["mask_logits"] for module in modules])  # [modules, r]
