"""The marginal likelihood of Laplace's approximation, as a function of the prior's precision λ.

    log Z(λ) = log p(D | θ) − ½ λ ‖θ‖² − ½ Σ_i log(1 + e_i / λ)   (nats)

with e_i the eigenvalues of the Fisher information: where e_i = 0, the prior's ½ log λ and the
posterior's −½ log(e_i + λ) cancel. The derivative with respect to log λ is ½ (γ(λ) − λ ‖θ‖²), where
γ(λ) = Σ e_i / (λ + e_i) is the number of well-determined parameters (MacKay, 1992). γ falls and
λ ‖θ‖² rises, so there is exactly one maximum, and bisection finds it.
"""

import math

from torch import Tensor

_STEPS = 100


def effective_parameters(eigenvalues: Tensor, precision: float) -> float:
    """How many parameters the data determine, γ(λ)."""
    return float((eigenvalues / (eigenvalues + precision)).sum())


def best_precision(eigenvalues: Tensor, squared_norm: float) -> float:
    """The λ of largest marginal likelihood.

    Args:
        eigenvalues: `[n]` float64, all e_i that may differ from zero.
        squared_norm: ‖θ‖².

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
