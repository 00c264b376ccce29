"""The marginal likelihood of Laplace's approximation, as a function of the prior's precision λ.

    log Z(λ) = log p(D | θ) − ½ λ ‖θ‖² − ½ Σ_i log(1 + e_i / λ)

with e_i the eigenvalues of the Fisher information: where e_i = 0, the prior's ½ log λ and the
posterior's −½ log(e_i + λ) cancel. The derivative with respect to log λ is ½ (γ(λ) − λ ‖θ‖²), where
γ(λ) = Σ e_i / (λ + e_i) is the number of well-determined parameters (MacKay, 1992). γ falls and
λ ‖θ‖² rises, so there is exactly one maximum, and bisection finds it.
"""

import math

import torch
from torch import Tensor

_STEPS = 100


def log_evidence(
    eigenvalues: Tensor, squared_norm: float, precision: float, log_likelihood: float = 0.0
) -> float:
    """The logarithm of Z(λ), in nats.

    Args:
        eigenvalues: `[n]` float64, all e_i that may differ from zero.
        squared_norm: ‖θ‖².
        precision: λ.
        log_likelihood: log p(D | θ), which λ does not change.
    """
    fit = log_likelihood - 0.5 * precision * squared_norm
    return fit - 0.5 * float(torch.log1p(eigenvalues / precision).sum())


def effective_parameters(eigenvalues: Tensor, precision: float) -> float:
    """How many parameters the data determine, γ(λ)."""
    return float((eigenvalues / (eigenvalues + precision)).sum())


def best_precision(eigenvalues: Tensor, squared_norm: float) -> float:
    """The λ of largest marginal likelihood.

    Raises:
        ValueError: θ or the curvature is zero, so that there is none.
    """
    trace = float(eigenvalues.sum())
    if not trace > 0.0 or not squared_norm > 0.0:
        raise ValueError("the marginal likelihood has no maximum: the curvature is zero")
    high = math.log(trace / squared_norm) / 2  # γ(λ) ≤ trace / λ
    low = high - math.log(1e30)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        precision = math.exp(middle)
        if effective_parameters(eigenvalues, precision) > precision * squared_norm:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)
