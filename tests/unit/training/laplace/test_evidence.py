"""Laplace-LoRA's choice of λ, against the evidence of dense Gaussians."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from tests.tiny_laplace import dense, setting
from training.laplace import best_precision, fit_curvature
from training.laplace.curvature import squared_norm


def test_the_best_precision_is_the_maximum_of_the_evidence():
    tiny = setting("answer_tokens")
    curvature = fit_curvature(tiny.gradients, tiny.prompts)
    theta = torch.cat([weight.flatten() for _, weight in tiny.gradients.weights]).double()
    norm = theta.square().sum().item()
    assert squared_norm(tiny.gradients.weights) == pytest.approx(norm)
    fisher, size = dense(curvature), len(theta)

    def evidence(precision: float) -> float:
        """log ∫ p(D | θ) p(θ) dθ without its constants, by determinants."""
        prior = MultivariateNormal(torch.zeros(size).double(), torch.eye(size) / precision)
        posterior = fisher + precision * torch.eye(size)
        return (prior.log_prob(theta) - 0.5 * torch.logdet(posterior)).item()

    best = best_precision(curvature.eigenvalues, norm)
    others = [evidence(best * 10 ** (step / 20)) for step in (-40, -10, -3, 3, 10, 40)]
    assert max(others) < evidence(best)


def test_the_best_precision_of_cases_worked_out():
    # In one dimension γ = λ‖θ‖²: e / (λ + e) = λ n.
    e, n = 3.0, 0.5
    root = (-e * n + math.sqrt((e * n) ** 2 + 4 * n * e)) / (2 * n)
    assert best_precision(torch.tensor([e]).double(), n) == pytest.approx(root)
    eigenvalues = torch.rand(200, generator=torch.Generator().manual_seed(1)).double().pow(6) * 1e4
    for norm in (0.01, 5.0, 3000.0):
        best = best_precision(eigenvalues, norm)
        assert (eigenvalues / (eigenvalues + best)).sum().item() == pytest.approx(best * norm)
    with pytest.raises(ValueError, match="no maximum"):
        best_precision(torch.zeros(3).double(), 1.0)
