"""The head's mask integrated exactly: against enumeration by hand and against sampling."""

import pytest
import torch

from dalorra.adapter.layer import mask_logits
from dalorra.decision.predictive import PosteriorSamples, summarise
from dalorra.forward.llama.network import PackedLlama
from dalorra.posteriors.bank import BankSpec, MaskBank
from tests.unit.core.test_packed_llama import LABELS, adapted, prompts

NAMES = ("a", "b", "c")


def test_integrated_head_is_the_mean_over_every_mask_of_the_head() -> None:
    model, sampled = adapted(["q_proj", "v_proj", "lm_head"])
    on = torch.tensor([0.2, 0.5, 0.9, 1.0])
    network, inputs = PackedLlama.of(model, LABELS), prompts((5, 8), 2)
    members = range(sampled.samples)
    answers = network.hidden_states(inputs, members, sampled, "answer_tokens").answers
    integrated = MaskBank(sampled.masks, head_probabilities=on)
    head = network.head.bind(integrated, members)
    probabilities, weights = network.head.probabilities(answers, head), head.weights
    assert probabilities.shape == (2, sampled.samples, 2**4, 3)
    assert weights.sum() == pytest.approx(1.0)

    expected = torch.zeros(2, sampled.samples, 3)
    for code in range(2**4):
        mask = torch.tensor([float(code >> j & 1) for j in range(4)])
        weight = torch.where(mask > 0, on, 1 - on).prod()
        masks = sampled.masks.clone()
        masks[:, -1] = mask  # only the head changes
        logits = network.label_logits(inputs, members, MaskBank(masks), "answer_tokens")
        expected += weight * logits.softmax(dim=-1)
    got = PosteriorSamples(probabilities, weights).by_sample
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_variance_is_that_of_the_whole_posterior() -> None:
    """Integrating must not hide the part of the variance that the head has."""
    model, _ = adapted(["q_proj", "v_proj", "lm_head"])
    logits = mask_logits(model).detach()
    network, inputs = PackedLlama.of(model, LABELS), prompts((5, 8), 2)
    many = 2_000

    def moments(head: str) -> list[tuple[float, float, float]]:
        bank = MaskBank.draw(
            logits, BankSpec.model_validate({"samples": many, "sampler": "iid", "head": head})
        )
        answers = network.hidden_states(inputs, range(many), bank, "all_tokens").answers
        head = network.head.bind(bank, range(many))
        probabilities = network.head.probabilities(answers, head)
        found = summarise(PosteriorSamples(probabilities, head.weights), NAMES)
        return [(p.probability, p.variance, p.mutual_information) for p in found]

    for sampled, integrated in zip(moments("sampled"), moments("integrated"), strict=True):
        assert integrated == pytest.approx(sampled, rel=0.1)
        assert integrated[1] > 1e-3  # there is a variance to lose


def test_total_variance_of_a_case_worked_out_by_hand() -> None:
    # Two passes; within each, two masks of the head with weights 1/4 and 3/4.
    p = torch.tensor([[0.9, 0.5], [0.3, 0.7]])  # p(first label) by pass and mask
    samples = PosteriorSamples(
        torch.stack([p, 1 - p], dim=-1)[None], weights=torch.tensor([0.25, 0.75])
    )
    means = [0.9 * 0.25 + 0.5 * 0.75, 0.3 * 0.25 + 0.7 * 0.75]  # 0.6 and 0.6
    (found,) = summarise(samples, ("a", "b"))
    assert found.probability == pytest.approx(sum(means) / 2)
    within = [0.25 * (0.9 - 0.6) ** 2 + 0.75 * (0.5 - 0.6) ** 2]
    within.append(0.25 * (0.3 - 0.6) ** 2 + 0.75 * (0.7 - 0.6) ** 2)
    assert found.variance == pytest.approx(0.0 + sum(within) / 2)
    assert found.samples == 2


def test_a_head_that_is_not_adapted_is_not_integrated() -> None:
    model, bank = adapted(["q_proj", "v_proj"])
    integrated = MaskBank(bank.masks, head_probabilities=torch.full((4,), 0.5))
    network, inputs = PackedLlama.of(model, LABELS), prompts((5,), 2)
    answers = network.hidden_states(inputs, range(2), integrated, "answer_tokens").answers
    head = network.head.bind(integrated, range(2))
    probabilities, weights = network.head.probabilities(answers, head), head.weights
    assert probabilities.shape == (1, 2, 1, 3)
    assert weights.tolist() == [1.0]
