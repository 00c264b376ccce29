"""Contextual low-rank adaptation, a redesign of C-LoRA (Rahmati et al., 2025).

Between A and B stands an r × r matrix that depends on the row, Gaussian with a mean and a deviation
that a small network of each module makes of A x; see `dalorra.posteriors.contextual`:

    ΔW x = (α/r) B E (A x),   q(E | row) = N(I + m, diag σ²),   prior p(E) = N(I, s²)

The latent matrix belongs to an example, not to the training set, so its KL is paid by every example
in full (it is not divided by N):

    mean over n of [ E_q(−log p(y_n | x_n, E)) + Σ_l mean over rows t of KL(q(E | a_nlt) ‖ p(E)) ]

What this bounds. Let each example have one latent matrix per module l. Where the network says the
same of every row of a pass, and so always when the adapter acts on one row alone, this is the exact
negative ELBO of that model, an upper bound of −log p(y_n | x_n); a module's q knows the matrices
below it through its input, which the chain rule of the KL allows. Where rows differ, their mean KL
is an upper bound of the KL of the matrix's law pooled over the rows, since KL is convex. It bounds
nothing about the rows jointly: they share one ε (see `AdapterDropout` for the reason), so their
matrices determine each other, and no joint prior with a density gives that a finite KL. A sum over
rows would be the ELBO of a model with independent noise for every token, and would grow with the
prompt.
One label is at most log K nats of evidence against modules · r² Gaussians: the bound holds q close
to the prior. `kl_weight` below 1 gives the context more say and is no longer a bound.

Differences from the authors' code:

- Its KL is summed over tokens, padding included, divided by 65 and multiplied by 10⁻⁶ and by a
  cyclic weight, against a likelihood that is multiplied by 1, 2 or 4: on Winogrande-S in sum about
  10⁻⁸ of the above. Ours leaves padding out, and 1 is the bound.
- Its mean is m, under a prior with mean 0: at the prior the adapter does nothing on average. Ours
  is I + m under N(I, s²), so that it is plain LoRA on average. q starts near the prior.
- It draws ε for every token, and signs on top, which change nothing of a Gaussian's distribution.
  Here one ε serves all tokens of a pass, in training as in serving.
- Its network is trained by SGD beside the AdamW of A and B, here by the same AdamW at a learning
  rate of its own. Its published evaluation takes the mean alone; M samples are the default here.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from dalorra.forward.reference_rows import PackedRows
from dalorra.posteriors import ContextBank, ContextualMatrix
from dalorra.posteriors.bank import NoiseBank
from dalorra.posteriors.noise import ModuleTensors
from training.methods.gaussian import gaussian_kl
from training.methods.method import Method, mean_over_rows


class CLora(Method):
    """A Gaussian matrix between A and B that depends on the input.

    Attributes:
        hidden: width of each module's network.
        prior_deviation: s.
        kl_weight: 1 is the bound.
        context_learning_rate: of the networks, which have no weight decay.
    """

    title = "a Gaussian r × r matrix between A and B that depends on the input (after C-LoRA)"

    name: Literal["c_lora"] = "c_lora"
    hidden: int = Field(default=64, ge=1)
    prior_deviation: float = Field(default=0.2, gt=0.0, lt=1.0)
    kl_weight: float = Field(default=1.0, ge=0.0)
    context_learning_rate: float = Field(default=1e-3, gt=0.0)

    def posterior(self) -> ContextualMatrix:
        return ContextualMatrix(hidden=self.hidden, prior_deviation=self.prior_deviation)

    def draw(
        self, modules: Sequence[ModuleTensors], samples: int, generator: torch.Generator
    ) -> ContextBank:
        return self.posterior().draw(modules, samples, generator, seen={})

    def example_penalty(self, bank: NoiseBank, rows: PackedRows) -> Tensor:
        """The modules' KLs, each a mean over the rows that the adapter acted on."""
        seen = cast(ContextBank, bank).seen or {}
        parts = [
            mean_over_rows(
                gaussian_kl(mean, log_deviation, self.prior_deviation).sum(dim=(-2, -1)),
                rows.adapted,
            )
            for mean, log_deviation in seen.values()
        ]
        return self.kl_weight * torch.stack(parts).sum()

    @property
    def learning_rates(self) -> Mapping[str, float]:
        names = ("context_in", "context_in_bias", "context_out", "context_out_bias")
        return dict.fromkeys(names, self.context_learning_rate)
