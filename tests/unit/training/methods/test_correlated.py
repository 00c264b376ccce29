"""Correlated masks in training: nested in DALorRA, and one draw of the factors for all modules."""

import pytest
import torch

from dalorra.adapter.layer import module_tensors
from training.methods.correlated import Correlated
from training.methods.dalorra import Dalorra


@pytest.fixture
def both(beside_dalorra):
    """A correlated adapter with Λ = 0, and DALorRA with the same φ, A and B."""
    return beside_dalorra(Correlated(), "mask_loadings")


@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
def test_without_loadings_its_training_is_that_of_dalorra(both, loss_of, scope):
    settings = {"prior": 0.3, "samples": 2}
    correlated, dalorra = (
        loss_of(method(**settings), model, scope=scope)
        for method, model in zip((Correlated, Dalorra), both, strict=True)
    )
    assert torch.equal(correlated.nll, dalorra.nll)
    torch.testing.assert_close(correlated.penalty, dalorra.penalty, rtol=1e-5, atol=1e-5)
    gradients = []
    for loss, model in zip((correlated, dalorra), both, strict=True):
        loss.total.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, msg=name)
    felt = [g.abs().max() for name, g in gradients[0].items() if "loadings" in name]
    assert min(felt) > 0, "the sampled factors move Λ away from zero"


def test_a_sample_has_one_draw_of_the_factors_for_all_modules(adapted):
    method = Correlated(factors=1, temperature=1e-6)
    modules = module_tensors(adapted(method))
    with torch.no_grad():
        for module in modules:
            module["mask_logits"].zero_()
            module["mask_loadings"].fill_(1e6)  # ξ alone decides
    masks = method.draw(modules, 200, torch.Generator().manual_seed(0)).masks
    assert torch.equal(masks, masks[:, :1, :1].expand_as(masks))
    assert 60 < masks[:, 0, 0].sum() < 140
