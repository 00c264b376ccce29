"""Laplace-LoRA's gradients, against autograd and finite differences."""

import pytest
import torch
from torch import Tensor

from dalorra.adapter.layer import module_tensors
from tests.tiny import MODULES
from tests.tiny_laplace import SCOPES, every_logit, setting


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("modules", [MODULES, ("q_proj", "v_proj"), ("k_proj", "down_proj")])
def test_the_jacobian_is_that_of_each_prompt_alone(scope, modules):
    tiny = setting(scope, modules)
    logits, weights = tiny.gradients(tiny.prompts, every_logit)
    found = torch.cat([rows.jacobian.flatten(2) for rows in weights], dim=2).transpose(0, 1)
    expected = tiny.jacobian
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=2e-4)
    torch.testing.assert_close(logits, tiny.logits(tiny.prompts).detach())


@pytest.mark.parametrize("scope", SCOPES)
def test_the_jacobian_is_the_slope_of_the_logits(scope):
    tiny = setting(scope)
    logits, weights = tiny.gradients(tiny.prompts, every_logit)
    generator = torch.Generator().manual_seed(5)
    tensors = [m[name] for m in module_tensors(tiny.model) for name in ("down", "up")]
    steps = [torch.randn(t.shape, generator=generator) for t in tensors]
    slope = torch.zeros_like(logits).T
    for rows, step in zip(weights, steps, strict=True):
        same = step.shape == rows.jacobian.shape[2:]
        slope += (rows.jacobian * (step if same else step[tiny.gradients.label_ids])).sum(
            dim=(2, 3)
        )

    def moved(size: float) -> Tensor:
        with torch.no_grad():
            for tensor, step in zip(tensors, steps, strict=True):
                tensor.add_(step, alpha=size)
        found = tiny.gradients(tiny.prompts, every_logit)[0]
        with torch.no_grad():
            for tensor, step in zip(tensors, steps, strict=True):
                tensor.sub_(step, alpha=size)
        return found

    numeric = (moved(1e-3) - moved(-1e-3)) / 2e-3
    torch.testing.assert_close(slope.T, numeric, rtol=0.02, atol=0.02 * numeric.abs().max().item())


def test_a_trained_and_a_loaded_adapter_have_the_same_gradients():
    tiny = setting("answer_tokens")
    first = [rows.jacobian for rows in tiny.gradients(tiny.prompts, every_logit)[1]]
    tiny.model.requires_grad_(False)
    again = [rows.jacobian for rows in tiny.gradients(tiny.prompts, every_logit)[1]]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
