"""Answers by Laplace's approximation, through the network's linearisation around θ."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, cast

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from dalorra.adapter.directory import Adapter, load_adapter
from dalorra.adapter.manifest import Card
from dalorra.base.model import BaseModel
from dalorra.decision.novelty import Novelty
from dalorra.decision.policy import Policy
from dalorra.decision.predictive import PosteriorSamples, Prediction, summarise
from dalorra.errors import AdapterError
from dalorra.posteriors import Deterministic, Laplace
from dalorra.predictor import Predictor, about_inputs
from dalorra.prompts import InputFields, Prompt, Scope
from dalorra.questions import Asked
from training.laplace.curvature import Curvature, along_contrasts, contrasts, in_batches
from training.laplace.gradients import LabelGradients
from training.prompt_cache import PromptCache

FACTORS_FILE: Final = "laplace.safetensors"
"""Name of the curvature's factors inside an adapter directory."""

_TOGETHER: Final = 32  # prompts: each has `draws` distributions over the labels in memory


class LaplacePredictor:
    """p(y | x) = ∫ softmax(f) N(f; f_θ(x), J Σ Jᵀ) df, J the Jacobian of the label logits.

    One differentiated pass per input instead of M samples. The integral is a mean over fixed draws
    (scrambled Sobol points, the same for every input), so an answer is reproducible. All of them
    stem from one pass, as the masks of an integrated head do: `samples` is 1, and the variance is
    that over the draws.

    Args:
        mode: the trained adapter without noise, on its base model. Policy, novelty and prompts are
            its own.
        gradients: of the same adapter's label logits.
        curvature: of its training data.
        posterior: the prior's precision λ and the number of draws.
        seed: of the draws.
    """

    def __init__(
        self,
        mode: Predictor,
        gradients: LabelGradients,
        curvature: Curvature,
        posterior: Laplace,
        seed: int,
    ) -> None:
        self.mode = mode
        self._curvature = curvature
        self._precision = posterior.prior_precision
        self._gradients = gradients
        self._basis = contrasts(len(mode.labels))  # [K, K − 1]
        self._draws = normal_draws(posterior.draws, len(mode.labels) - 1, seed)

    @classmethod
    def from_adapter(cls, adapter: Adapter, base: BaseModel) -> "LaplacePredictor":
        """Attaches an adapter to `base`, and reads the factors beside it.

        Raises:
            AdapterError: see `load_adapter`; or the factors are missing, damaged or another's.
        """
        posterior = adapter.posterior
        if not isinstance(posterior, Laplace):
            raise AdapterError(f"{adapter.path} is no laplace adapter")
        path = adapter.path / FACTORS_FILE
        model = load_adapter(adapter, base)
        mode = Predictor.of(replace(adapter, posterior=Deterministic()), base, model)
        label_ids = torch.tensor(mode.label_ids, device=base.device)
        gradients = LabelGradients(model, label_ids, mode.scope, PromptCache(0))
        curvature = Curvature.load(path, gradients.weights)
        if curvature.digest != posterior.factors:
            raise AdapterError(f"{path} belongs to another adapter: copy the whole folder again")
        return cls(mode, gradients, curvature, posterior, adapter.manifest.bank.seed)

    @property
    def card(self) -> Card:
        """Who answers."""
        return self.mode.card

    @property
    def policy(self) -> Policy:
        """Thresholds and temperature."""
        return self.mode.policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        self.mode.policy = policy

    @property
    def novelty(self) -> Novelty | None:
        """Where the training data lie."""
        return self.mode.novelty

    @novelty.setter
    def novelty(self, novelty: Novelty | None) -> None:
        self.mode.novelty = novelty

    @property
    def precision(self) -> str:
        """What its answers are computed in."""
        return self.mode.precision

    @property
    def scope(self) -> Scope:
        """Rows that the adapter acts on."""
        return self.mode.scope

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names."""
        return self.mode.labels

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields of the template."""
        return self.mode.fields

    @property
    def samples(self) -> int:
        """1, whatever the number of draws."""
        return 1

    def encode(self, value: InputFields | Asked) -> Prompt:
        """Tokenises one input; `InputError` when it does not fit."""
        return self.mode.encode(value)

    def predict(self, prompts: Sequence[Prompt]) -> list[Prediction]:
        """Moments of the linearised predictive for any number of prompts; order kept."""
        predictions: list[Prediction] = []
        for start in range(0, len(prompts), _TOGETHER):
            samples = self.posterior_samples(prompts[start : start + _TOGETHER])
            predictions += summarise(samples, self.labels)
        novelty = self.novelty.p_values(self.novelty_features(prompts)) if self.novelty else None
        return about_inputs(predictions, prompts, novelty)

    def predict_mean(self, prompts: Sequence[Prompt]) -> list[Prediction]:
        """The trained adapter alone, as plain LoRA answers; order kept."""
        return self.mode.predict_mean(prompts)

    def novelty_features(self, prompts: Sequence[Prompt]) -> Tensor:
        """Those of the trained adapter, `[B, D, d]`; order kept."""
        return self.mode.novelty_features(prompts)

    def posterior_samples(self, prompts: Sequence[Prompt]) -> PosteriorSamples:
        """Distributions over the labels under the draws, equally weighted: `[B, 1, draws, K]`.

        The policy's temperature divides the logits.
        """
        logits, covariance = self.logit_moments(prompts)
        deviations = self._draws @ _root(covariance).mT @ self._basis.T  # [B, draws, K]
        probabilities = (logits[:, None] + deviations).softmax(dim=-1)[:, None]
        weights = torch.full((len(self._draws),), 1.0 / len(self._draws), dtype=torch.float64)
        return self.policy.tempered(PosteriorSamples(probabilities, weights))

    def logit_moments(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """Mean of the label logits, and covariance of their contrasts Qᵀ f.

        Returns:
            `[B, K]` and `[B, K − 1, K − 1]`, float64 on the CPU. Q is `contrasts(K)`.
        """
        count = len(self.labels)
        mean = torch.empty(len(prompts), count, dtype=torch.float64)
        covariance = torch.empty(len(prompts), count - 1, count - 1, dtype=torch.float64)
        for batch in in_batches(self._gradients, prompts):
            logits, weights = self._gradients([prompts[i] for i in batch], along_contrasts)
            mean[batch] = logits.double().cpu()
            found = self._curvature.covariance(weights, self._precision)
            covariance[batch] = found.double().cpu()
        return mean, covariance


def normal_draws(draws: int, dimensions: int, seed: int) -> Tensor:
    """Standard normal points that fill the space evenly, `[draws, dimensions]` float64.

    Scrambled Sobol points: their mean over a smooth function is off by far less than the 1/√draws
    of independent ones.
    """
    uniform = SobolEngine(dimensions, scramble=True, seed=seed).draw(draws, dtype=torch.float64)
    return cast(Tensor, torch.special.ndtri(uniform.clamp(1e-12, 1 - 1e-12)))


def _root(covariance: Tensor) -> Tensor:
    """R with R Rᵀ = covariance `[B, n, n]`, also where it is singular."""
    values, vectors = torch.linalg.eigh(covariance)
    return cast(Tensor, vectors * values.clamp_min(0.0).sqrt()[:, None, :])
