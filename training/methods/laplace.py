"""Laplace-LoRA (Yang, Robeyns, Wang and Aitchison, ICLR 2024; arXiv 2308.13111).

Training is that of plain LoRA. Afterwards, without another step of training:

1. The exact Fisher information F of A and B, as they are stored, over the training set,
   Kronecker-factored (`training.laplace.curvature`).
2. The precision λ of a Gaussian prior N(0, 1/λ) by Laplace's marginal likelihood
   (`training.laplace.evidence`), or, as in the paper's experiments with a validation set, by the
   negative log-likelihood of the hold-out; the posterior is N(θ, Σ), Σ = (F + λ I)⁻¹.
3. The predictive of the linearised network: logits f ~ N(f_θ(x), J Σ Jᵀ), J = ∂f / ∂θ, and the mean
   of their softmax (`training.laplace.predictor`).

Differences from the authors' code:

- Its KFAC takes every row for an example of its own ("expand"). It counts padding rows, too, and
  divides the inputs' second moment by the number of examples, so that F is too large by about the
  number of rows per example. Here the factors come from the gradients of whole examples, which is
  closer to the exact F and costs the same, see `Kfac`. `kfac: expand` is the authors' form, but
  without padding and divided by the number of rows.
- It finds λ by 100 steps of Adam from λ = 1. The function has one maximum: bisection finds it.
- It draws 100,000 logits for each input, from a covariance with 1e-6 added, anew at every call.
  Here even, fixed Sobol points stand for the same Gaussian, the same ones for every input.
- It differentiates every logit. The softmax does not see what they have in common: here K − 1
  contrasts are enough, and the predictive is the same. Likewise K − 1 backwards make the exact
  Fisher.
- The paper keeps the d × d factors at low rank, the published code in full. So does this one,
  unless `factor_rank` says otherwise. Directions that are cut off have the prior's variance.
- It trains with dropout 0.1 and then fits without. Here there is none.
- Under `answer_tokens` the adapter acts on the cue rows alone: only these enter F and J.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from dalorra import posteriors
from dalorra.errors import ConfigError
from dalorra.posteriors.noise import ModuleTensors
from dalorra.predictor import Predictor
from training.laplace import (
    FACTORS_FILE,
    Curvature,
    Kfac,
    LabelGradients,
    LaplacePredictor,
    best_precision,
    fit_curvature,
)
from training.laplace.curvature import squared_norm
from training.methods.plain import PlainLora, gaussian_penalty
from training.methods.trained import Inference, PredictorUnder, TrainedAdapter
from training.prompt_cache import PromptCache
from training.tasks import Example

_PRECISIONS: Final = tuple(10.0 ** (power / 2) for power in range(-6, 13))


class Laplace(PlainLora):
    """Plain LoRA, then a Gaussian around what it found.

    Attributes:
        training_precision: of a Gaussian prior on A and B in training, as in `map`; 0 is maximum
            likelihood, what the paper's weight decay comes to.
        prior_precision: λ of the posterior; None: the one of largest marginal likelihood;
            `holdout`: the power of √10 from 0.001 to 10⁶ of least negative log-likelihood on the
            hold-out, which the other methods do not look at.
        kfac: how the rows of an example enter the curvature, see `Kfac`.
        factor_rank: eigenvectors kept of a Kronecker factor; None: all. For bases with tens of
            thousands of features, where d × d numbers per module are too many.
        draws: draws of the logits that stand for their Gaussian.
    """

    title = "plain LoRA, then a Gaussian around it, linearised (Laplace-LoRA)"

    name: Literal["laplace"] = "laplace"
    training_precision: float = Field(default=0.0, ge=0.0)
    prior_precision: PositiveFloat | Literal["holdout"] | None = None
    kfac: Kfac = "examples"
    factor_rank: int | None = Field(default=None, ge=1)
    draws: int = Field(default=1024, ge=2)

    def penalty(self, modules: Sequence[ModuleTensors]) -> Tensor:
        """−log p(A, B) of the training's prior, up to a constant."""
        return gaussian_penalty(modules, self.training_precision)

    def after_training(self, trained: TrainedAdapter) -> "LaplaceInference":
        """Fits the curvature of A and B, and λ."""
        mode = trained.predictor(self.posterior())
        label_ids = torch.tensor(mode.label_ids, device=trained.model.device)
        to_fit, to_answer = (
            LabelGradients(trained.model, label_ids, mode.scope, cache)
            for cache in (trained.prompt_cache, PromptCache(0))
        )
        prompts = [mode.encode(example.input) for example in trained.examples]
        curvature = fit_curvature(to_fit, prompts, kfac=self.kfac, limit=self.factor_rank)

        def fit(precision: float) -> LaplaceInference:
            posterior = posteriors.Laplace(
                prior_precision=precision, draws=self.draws, factors=curvature.digest
            )
            return LaplaceInference(posterior, to_answer, curvature, trained.bank.seed)

        if self.prior_precision == "holdout":
            return min(map(fit, _PRECISIONS), key=_nll_on(trained.holdout, mode))
        if self.prior_precision is not None:
            return fit(self.prior_precision)
        try:
            return fit(best_precision(curvature.eigenvalues, squared_norm(to_fit.weights)))
        except ValueError as error:
            raise ConfigError(f"method.prior_precision: {error}; give one") from error


@dataclass(frozen=True, slots=True)
class LaplaceInference(Inference):
    """Answers by the posterior's linearised predictive.

    Attributes:
        posterior: the Gaussian around the trained adapter.
        gradients: of the adapter's label logits.
        curvature: factors of the Fisher information.
        seed: of the draws.
    """

    posterior: posteriors.Laplace
    gradients: LabelGradients
    curvature: Curvature
    seed: int

    def predictor(self, under: PredictorUnder) -> LaplacePredictor:
        mode = under(posteriors.Deterministic())
        return LaplacePredictor(mode, self.gradients, self.curvature, self.posterior, self.seed)

    def save(self, folder: Path) -> None:
        """Writes the factors beside the adapter."""
        self.curvature.save(folder / FACTORS_FILE)


def _nll_on(examples: Sequence[Example], mode: Predictor) -> Callable[[LaplaceInference], float]:
    """How badly a fit explains labelled examples: mean negative log-likelihood, nats."""
    prompts = [mode.encode(example.input) for example in examples]
    labels = torch.tensor([[mode.labels.index(example.label)] for example in examples])

    def nll(fit: LaplaceInference) -> float:
        predictor = fit.predictor(lambda _: mode)
        probabilities = predictor.posterior_samples(prompts).by_sample[:, 0]  # [N, K]
        return float(-probabilities.gather(1, labels).log().mean())

    return nll
