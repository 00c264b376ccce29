"""A Gaussian over A and B themselves, read through the network's linearisation."""

from collections.abc import Sequence
from typing import Final

from pydantic import Field

from dalorra.errors import AdapterError
from dalorra.posteriors.bank import BankSpec, MaskBank, NoiseBank
from dalorra.posteriors.noise import ModuleTensors
from dalorra.posteriors.posterior import Posterior
from dalorra.posteriors.rank_masks import Deterministic

_REFUSAL: Final = (
    "a laplace adapter cannot be served: its predictive needs gradients, it is no average of "
    "sampled passes; `dalorra evaluate` scores it"
)


class Laplace(Posterior):
    """N(θ, (F + λ I)⁻¹) around the trained A and B (Laplace-LoRA).

    Attributes:
        prior_precision: λ.
        draws: draws of the logits that stand for their Gaussian.
        factors: digest of the Kronecker factors of F, which have a file of their own.
    """

    prior_precision: float = Field(gt=0.0)
    draws: int = Field(ge=1)
    factors: str

    def check_servable(self) -> None:
        raise AdapterError(_REFUSAL)

    def bank(self, modules: Sequence[ModuleTensors], spec: BankSpec) -> NoiseBank:
        raise AdapterError(_REFUSAL)

    def mean(self, modules: Sequence[ModuleTensors]) -> MaskBank:
        """The trained adapter."""
        return Deterministic().mean(modules)
