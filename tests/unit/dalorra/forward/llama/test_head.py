"""The head's mask integrated exactly: against enumeration by hand and against sampling."""

from dataclasses import replace

import pytest
import torch

from dalorra.adapter.layer import mask_logits
from dalorra.decision.predictive import PosteriorSamples, summarise
from dalorra.posteriors.bank import BankSpec, MaskBank
from tests.tiny import packed, random_prompts, tiny_adapter, tiny_bank, tiny_base

LABELS = torch.tensor([1, 2, 7])


def test_integrated_head_is_the_mean_over_every_mask_of_the_head() -> None:
    model = tiny_adapter(tiny_base(layers=3))
    on, sampled, prompts = (
        torch.tensor([0.2, 0.5, 0.9, 1.0]),
        tiny_bank(model),
        random_prompts((5, 8), 2),
    )
    samples = range(sampled.samples)
    network = packed(model, LABELS, replace(sampled, head_probabilities=on))
    found = network.answers(prompts, samples)
    assert found.probabilities.shape == (2, sampled.samples, 2**4, 3)
    assert found.weights.sum() == pytest.approx(1.0)

    expected = torch.zeros(2, sampled.samples, 3)
    for code in range(2**4):
        mask = torch.tensor([float(code >> j & 1) for j in range(4)])
        weight = torch.where(mask > 0, on, 1 - on).prod()
        masks = sampled.masks.clone()
        masks[:, -1] = mask  # only the head changes
        logits = network.under(MaskBank(masks)).label_logits(prompts, samples)
        expected += weight * logits.softmax(dim=-1)
    by_sample = PosteriorSamples(found.probabilities, found.weights).by_sample
    torch.testing.assert_close(by_sample, expected, rtol=1e-5, atol=1e-6)


def test_variance_is_that_of_the_whole_posterior() -> None:
    """Integrating must not hide the part of the variance that the head has."""
    model = tiny_adapter(tiny_base(layers=3))
    many, prompts = 2_000, random_prompts((5, 8), 2)

    def moments(head: str) -> list[tuple[float, float, float]]:
        spec = BankSpec.model_validate({"samples": many, "sampler": "iid", "head": head})
        bank = MaskBank.draw(mask_logits(model).detach(), spec)
        answers = packed(model, LABELS, bank, "all_tokens").answers(prompts, range(many))
        samples = PosteriorSamples(answers.probabilities, answers.weights)
        found = summarise(samples, ("a", "b", "c"))
        return [(p.probability, p.variance, p.mutual_information) for p in found]

    for sampled, integrated in zip(moments("sampled"), moments("integrated"), strict=True):
        assert integrated == pytest.approx(sampled, rel=0.1)
        assert integrated[1] > 1e-3  # there is a variance to lose


def test_total_variance_of_a_case_worked_out_by_hand() -> None:
    # Two samples; within each, two masks of the head with weights 1/4 and 3/4.
    p = torch.tensor([[0.9, 0.5], [0.3, 0.7]])  # p(first label) by sample and mask
    samples = PosteriorSamples(
        torch.stack([p, 1 - p], dim=-1)[None], weights=torch.tensor([0.25, 0.75])
    )
    (found,) = summarise(samples, ("a", "b"))
    assert found.probability == pytest.approx(0.6)  # the mean of both samples
    within = (0.25 * 0.3**2 + 0.75 * 0.1**2, 0.25 * 0.3**2 + 0.75 * 0.1**2)
    assert found.variance == pytest.approx(0.0 + sum(within) / 2)
    assert found.samples == 2


def test_a_head_that_is_not_adapted_is_not_integrated() -> None:
    model = tiny_adapter(tiny_base(layers=3), modules=("q_proj", "v_proj"))
    bank = replace(tiny_bank(model), head_probabilities=torch.full((4,), 0.5))
    found = packed(model, LABELS, bank).answers(random_prompts((5,), 2), range(2))
    assert found.probabilities.shape == (1, 2, 1, 3)
    assert found.weights.tolist() == [1.0]
