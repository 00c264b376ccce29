import math

import pytest
import torch
from pydantic import ValidationError

from dalorra.posteriors.bank import BankSpec, MaskBank

LOGITS = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)) * 1.5


def test_the_bank_is_drawn_from_its_specification_alone():
    bank = MaskBank.draw(LOGITS, BankSpec(samples=10, seed=4))
    assert bank.samples == 10
    assert bank.masks.shape == (10, 5, 8)
    torch.manual_seed(123)  # the global generator has no say
    again = MaskBank.draw(LOGITS, BankSpec(samples=10, seed=4))
    assert torch.equal(bank.masks, again.masks)
    assert not torch.equal(bank.masks, MaskBank.draw(LOGITS, BankSpec(samples=10, seed=5)).masks)


@pytest.mark.parametrize("sampler", ["stratified", "iid"])
def test_the_mean_of_the_bank_tends_to_the_posterior_mean(sampler):
    p = torch.sigmoid(LOGITS)
    for samples in (10, 1000, 20000):
        mean = MaskBank.draw(LOGITS, BankSpec(samples=samples, sampler=sampler)).masks.mean(0)
        # stratified: within one count; iid: within 4.5 standard errors
        bound = 1 / samples if sampler == "stratified" else 4.5 * (p * (1 - p) / samples).sqrt()
        assert ((mean - p).abs() <= bound + 1e-6).all()


def test_infinite_logits_are_certain():
    logits = torch.tensor([[math.inf, -math.inf, 0.0]])
    masks = MaskBank.draw(logits, BankSpec()).masks
    assert masks.sum(0).tolist() == [[10.0, 0.0, 5.0]]
    assert MaskBank.mean(logits).masks.tolist() == [[[1.0, 0.0, 0.5]]]


def test_the_mean_bank_is_one_detached_sample():
    bank = MaskBank.mean(LOGITS.clone().requires_grad_())
    assert bank.samples == 1
    assert not bank.masks.requires_grad
    torch.testing.assert_close(bank.masks[0], torch.sigmoid(LOGITS))


def test_drawing_from_a_trained_parameter_keeps_no_graph():
    bank = MaskBank.draw(torch.nn.Parameter(LOGITS.clone()), BankSpec())
    assert not bank.masks.requires_grad


def test_each_row_gets_its_sample_and_rows_without_one_get_no_update():
    bank = MaskBank.draw(LOGITS, BankSpec(samples=3))
    index = torch.tensor([[-1, 0, 2], [1, -1, -1]])
    noise = bank.noise(index)
    assert len(noise) == 5
    activations = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))
    for module, module_noise in enumerate(noise):
        found = module_noise(activations, torch.empty(0))
        for b, row in ((0, 0), (1, 1), (1, 2)):
            assert (found[b, row] == 0).all()
        for (b, row), sample in {(0, 1): 0, (0, 2): 2, (1, 0): 1}.items():
            assert torch.equal(found[b, row], activations[b, row] * bank.masks[sample, module])


def test_an_impossible_specification_is_refused():
    for bad in ({"samples": 0}, {"sampler": "antithetic"}, {"size": 3}):
        with pytest.raises(ValidationError):
            BankSpec.model_validate(bad)
