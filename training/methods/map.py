"""Plain LoRA with a Gaussian prior on A and B: the maximum of the posterior.

The baseline that both papers report has a weight decay of 1e-5 in AdamW. With their schedule it
shrinks the weights by about 2.5e-6 over the whole training (the sum of all learning rates times the
decay), so that it is maximum likelihood in all but name. Here the prior is a term of the objective
and its strength a setting: AdamW's decay is no prior, since it is not scaled with the gradient.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from dalorra.posteriors.noise import ModuleTensors
from training.methods.plain import PlainLora, gaussian_penalty


class Map(PlainLora):
    """Plain LoRA with independent N(0, σ²) priors on the elements of A and B.

    Attributes:
        prior_precision: 1 / σ².
    """

    title = "plain LoRA with a Gaussian prior, maximum a posteriori"

    name: Literal["map"] = "map"
    prior_precision: float = Field(default=1.0, ge=0.0)

    def penalty(self, modules: Sequence[ModuleTensors]) -> Tensor:
        """−log p(A, B) up to a constant."""
        return gaussian_penalty(modules, self.prior_precision)
