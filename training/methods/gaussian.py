"""The divergence that the Gaussian methods pay."""

import math

from torch import Tensor


def gaussian_kl(mean: Tensor, log_deviation: Tensor, prior_deviation: float) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, s²)) of each element, in nats; `log_deviation` is log σ."""
    variance = (2.0 * log_deviation).exp()
    share = (variance + mean.square()) / (2.0 * prior_deviation**2)
    return math.log(prior_deviation) - log_deviation + share - 0.5
