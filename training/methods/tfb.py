"""Training-free Bayesianisation of a trained LoRA (TFB; Shi et al., 2024).

Training is that of `mle`. Afterwards B = U diag(d) Vᵀ gives the same product a form in which
Gaussian noise on A is noise of equal strength in every direction of the column space of B:

    B' = U diag(d),   A' = Vᵀ A,   B' A' = B A,   σ_ij = σ_q / d_i   ⇒   B' (σ ⊙ ε) = σ_q U ε

σ_q is the largest one under which the negative log-likelihood of an anchor set, under the average
of the M served samples, rises by no more than a fraction. Anchors are training examples; what
counts as their label is the adapter's own answer without noise, as in the authors' code, so that
no label is needed.

Differences from the authors' code:

- Theirs divides the relative rise by the 500 anchors before comparing it with 0.003: a rise of
  150 % was allowed. Here `tolerance` is the relative rise itself; a fall is always allowed.
- Theirs bisects [0.001, 0.015] five times and returns the smallest scale found to violate the
  limit, or the upper end, untested, when none did. Here the bracket doubles until the limit is
  passed and is then bisected, and the result is the largest scale found to satisfy it, 0 if none.
- Its noise is drawn anew for every evaluation; here each scale is tried with the same ε, those of
  the bank that is served, so that the rise is a smooth function of the scale.
- Theirs decomposes B again for every batch of every step of the search, here once. The search runs
  on the weights as they are stored, in bfloat16 by default.
- A singular value of zero, such as those of a module that has learned nothing, gets no noise;
  theirs adds 10⁻⁶ to it and divides.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dalorra.adapter.layer import module_tensors
from dalorra.posteriors import ColumnSpaceNoise
from dalorra.posteriors.noise import ModuleTensors
from training.methods.plain import PlainLora
from training.methods.trained import Inference, TrainedAdapter
from training.tasks import subsample

_FIRST = 1e-3
_LARGEST = 1.0


class Tfb(PlainLora):
    """Plain LoRA with noise that is added afterwards.

    Attributes:
        anchors: training examples of the search, drawn by seed; all of them if there are fewer.
        tolerance: how much the anchors' negative log-likelihood may rise, as a share of itself.
        bisections: steps of the search after the limit is passed for the first time.
    """

    title = "noise added to a trained LoRA, as much as an anchor set bears (TFB)"

    name: Literal["tfb"] = "tfb"
    anchors: int = Field(default=256, ge=1)
    tolerance: float = Field(default=0.5, gt=0.0)
    bisections: int = Field(default=6, ge=1)

    def posterior(self) -> ColumnSpaceNoise:
        """Without noise, as in training."""
        return ColumnSpaceNoise()

    def finish(self, modules: Sequence[ModuleTensors]) -> None:
        """Gives every module its singular form."""
        for module in modules:
            to_singular_form(module)

    def after_training(self, trained: TrainedAdapter) -> Inference:
        """Finds the posterior's scale."""
        rise = self._rise(trained)
        scale = largest_allowed(
            lambda scale: rise(scale) <= self.tolerance,
            first=_FIRST,
            largest=_LARGEST,
            bisections=self.bisections,
        )
        return Inference(ColumnSpaceNoise(scale=scale))

    def _rise(self, trained: TrainedAdapter) -> Callable[[float], float]:
        """Scale → relative rise of the anchors' negative log-likelihood."""
        predictor, modules = trained.predictor(self.posterior()), module_tensors(trained.model)
        count = min(self.anchors, len(trained.examples))
        anchors = subsample(trained.examples, count, trained.seed)
        prompts = [predictor.encode(example.input) for example in anchors]

        def probabilities(scale: float) -> Tensor:
            bank = ColumnSpaceNoise(scale=scale).bank(modules, trained.bank)
            return predictor.posterior_samples(prompts, bank).by_sample.mean(dim=1).double()

        silent = probabilities(0.0)  # [anchors, K]
        answers = silent.argmax(dim=-1, keepdim=True)

        def nll(probabilities: Tensor) -> float:
            return -probabilities.gather(1, answers).log().mean().item()

        before = nll(silent)
        # An adapter that is certain of every anchor has no rise to measure it by.
        return lambda scale: (nll(probabilities(scale)) - before) / before if before else math.inf


@torch.no_grad()
def to_singular_form(module: ModuleTensors) -> None:
    """B ← U diag(d), A ← Vᵀ A in place, where B = U diag(d) Vᵀ: B · A stays as it is."""
    down, up = module["down"], module["up"]
    u, d, vt = torch.linalg.svd(up.double().cpu(), full_matrices=False)
    d = torch.where(d > d.max() * max(up.shape) * torch.finfo(d.dtype).eps, d, 0.0)
    up.copy_(u * d)
    down.copy_(vt @ down.double().cpu())


def largest_allowed(
    allowed: Callable[[float], bool], *, first: float, largest: float, bisections: int
) -> float:
    """The largest value up to `largest` that is allowed, where all smaller ones are too.

    The bracket doubles from `first`; bisection halves it on a logarithmic scale, so the result is
    within 2^(2^−bisections) of the limit when `first` is allowed. 0 when nothing is.
    """
    low, high = 0.0, first
    while allowed(high):
        if high == largest:
            return largest
        low, high = high, min(2.0 * high, largest)
    for _ in range(bisections):
        middle = math.sqrt(low * high) if low else high / 2.0
        if allowed(middle):
            low = middle
        else:
            high = middle
    return low
