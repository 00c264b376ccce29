"""What a method is given when the training is over, and what it hands back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dalorra.adapter.layer import StochasticPeftModel
from dalorra.posteriors import Posterior
from dalorra.posteriors.bank import BankSpec
from dalorra.predictor import Predictor
from training.answers import Evaluable
from training.prompt_cache import PromptCache
from training.tasks import Example

PredictorUnder = Callable[[Posterior], Predictor]
"""Makes the predictor of an adapter under a posterior."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainedAdapter:
    """An adapter after its last step, its weights rounded as they will be stored.

    Attributes:
        model: the base with the adapter attached, in evaluation mode.
        predictor: answers with the adapter as it is, under any posterior.
        examples: what it was trained on.
        holdout: what was held out of those.
        bank: how the samples that it will be served with are drawn.
        seed: of the run.
        prompt_cache: keys and values of the training prompts.
    """

    model: StochasticPeftModel
    predictor: PredictorUnder
    examples: Sequence[Example]
    holdout: Sequence[Example]
    bank: BankSpec
    seed: int
    prompt_cache: PromptCache


@dataclass(frozen=True, slots=True)
class Inference:
    """How an adapter answers once it is trained; this one by the samples of its posterior.

    Attributes:
        posterior: for the manifest.
    """

    posterior: Posterior

    def predictor(self, under: PredictorUnder) -> Evaluable:
        """The adapter, ready to answer."""
        return under(self.posterior)

    def save(self, folder: Path) -> None:
        """Writes what belongs to the answers and is no tensor of the adapter; here nothing."""
