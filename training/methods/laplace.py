"""Laplace-LoRA (Yang, Robeyns, Wang and Aitchison, ICLR 2024; arXiv 2308.13111).

Training is that of plain LoRA. Afterwards, without another step of training:

1. The exact Fisher information F of A and B over the training set, Kronecker-factored
   (`training.laplace.curvature`).
2. The precision λ of a Gaussian prior N(0, 1/λ) by Laplace's marginal likelihood
   (`training.laplace.evidence`), or, as in the paper's experiments with a validation set, by the
   negative log-likelihood of the hold-out; the posterior is N(θ, Σ), Σ = (F + λ I)⁻¹.
3. The predictive of the linearised network: logits f ~ N(f_θ(x), J Σ Jᵀ), J = ∂f / ∂θ, and the mean
   of their softmax (`training.laplace.predictor`).

Where the authors' code does otherwise, and why we do not:

- Its KFAC takes every row for an example of its own ("expand"). It counts padding rows, too, and
  divides the inputs' second moment by the number of examples, so that F is too large by about the
  number of rows per example. Here the factors come from the gradients of whole examples, which is
  closer to the exact F and costs the same, see `Kfac`. `kfac: expand` is the other one, without
  padding and divided by the number of rows.
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
from typing import TYPE_CHECKING, Final, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from dalorra.adapter.directory import round_adapter
from dalorra.errors import ConfigError
from dalorra.posteriors import Deterministic
from dalorra.posteriors import Laplace as LaplacePosterior
from dalorra.posteriors.bank import BankSpec, NoiseBank
from dalorra.posteriors.noise import ModuleTensors
from training.laplace import Kfac, LabelGradients, LaplaceFit, best_precision, fit_curvature
from training.laplace.curvature import squared_norm
from training.methods.map import gaussian_penalty
from training.methods.method import Method
from training.prompt_cache import PromptCache

if TYPE_CHECKING:
    from training.run import Run

_PRECISIONS: Final = tuple(10.0 ** (power / 2) for power in range(-6, 13))


class Laplace(Method):
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
    noise_per: Literal["batch"] = "batch"
    training_precision: float = Field(default=0.0, ge=0.0)
    prior_precision: PositiveFloat | Literal["holdout"] | None = None
    kfac: Kfac = "examples"
    factor_rank: int | None = Field(default=None, ge=1)
    draws: int = Field(default=1024, ge=2)

    def posterior(self) -> Deterministic:
        """While it is trained; `after_training` returns the other one."""
        return Deterministic()

    def draw(
        self, modules: Sequence[ModuleTensors], samples: int, generator: torch.Generator
    ) -> NoiseBank:
        return Deterministic().bank(modules, BankSpec(samples=samples))

    def penalty(self, modules: Sequence[ModuleTensors]) -> Tensor:
        """−log p(A, B) of the training's prior, up to a constant."""
        return gaussian_penalty(modules, self.training_precision)

    def after_training(self, run: "Run") -> LaplaceFit:
        """Fits the curvature of A and B, as they will be stored, and λ."""
        round_adapter(run.model, run.config.adapter.weight_dtype)
        run.model.eval()
        objective = run.model.objective
        fitted, asked = (
            LabelGradients(run.model, objective.label_ids, objective.scope, cache)
            for cache in (run.frozen.prompt_cache, PromptCache(0))
        )
        prompts = [run.tokenizer.encode(example.input) for example in run.data.train]
        curvature, _ = fit_curvature(fitted, prompts, kfac=self.kfac, limit=self.factor_rank)

        def fit(precision: float) -> LaplaceFit:
            posterior = LaplacePosterior(
                prior_precision=precision, draws=self.draws, factors=curvature.digest
            )
            return LaplaceFit(posterior, asked, curvature, run.config.bank.seed)

        if self.prior_precision == "holdout":
            return min(map(fit, _PRECISIONS), key=_holdout_nll(run))
        if self.prior_precision is not None:
            return fit(self.prior_precision)
        try:
            return fit(best_precision(curvature.eigenvalues, squared_norm(fitted.weights)))
        except ValueError as error:
            raise ConfigError(f"method.prior_precision: {error}; give one") from error


def _holdout_nll(run: "Run") -> Callable[[LaplaceFit], float]:
    """The mean negative log-likelihood of the hold-out, nats, as the fit answers it."""
    mode = run.predictor()
    prompts = [mode.encode(example.input) for example in run.data.holdout]
    labels = torch.tensor([[mode.labels.index(example.label)] for example in run.data.holdout])

    def nll(fit: LaplaceFit) -> float:
        probabilities = fit.predictor(mode).posterior_samples(prompts).by_sample[:, 0]  # [N, K]
        return float(-probabilities.gather(1, labels).log().mean())

    return nll
