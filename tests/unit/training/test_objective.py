"""The objective against Eq. 4, computed by plain PEFT one example and one sample at a time."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence

from dalorra.adapter.layer import attach, lora_config, mask_logits, stochastic_layers
from dalorra.posteriors import RankMasks
from dalorra.posteriors.masks import relaxed_masks
from dalorra.prompts import Prompt, PromptTokenizer
from dalorra.question_prompts import QuestionFormat, QuestionTokenizer
from dalorra.questions import Asked, Option, Question
from tests.reference import PlainLora
from tests.tiny import FORMAT, MODULES, tiny_adapter, tiny_base, tiny_prompts
from training.methods import Dalorra
from training.objective import Objective, cross_entropy
from training.prompt_cache import PromptCache

SENTENCES = ("good", "bad", "an odd one", "I laughed", "so so", "a film of no end", "meh")
LABELS = [1, 0, 0, 1, 0, 1, 1]
BATCHES = (range(3), range(3, 6), range(6, 7))  # the last one is uneven


def objective(base: Any, cache: PromptCache | None = None, **options: Any) -> Objective:
    scope = options.pop("scope", "answer_tokens")
    size = options.pop("train_size", len(SENTENCES))
    label_ids = torch.tensor(PromptTokenizer(base.tokenizer, FORMAT).label_ids)
    return Objective(Dalorra(**options), label_ids, scope, size, cache)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
@pytest.mark.parametrize("noise_per", ["example", "batch"])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("cached", [False, True])
def test_one_epoch_of_mini_batches_is_equation_4(scope, noise_per, samples, cached):
    base = tiny_base()
    plain = copy.deepcopy(base.model)
    model = tiny_adapter(base)
    twin = PlainLora(plain, model, scope)
    prompts = tiny_prompts(base, SENTENCES)
    loss_of = objective(
        base,
        PromptCache(2**30) if cached else None,
        scope=scope,
        prior=0.3,
        temperature=0.7,
        samples=samples,
        noise_per=noise_per,
    )

    epoch = 0.0
    negative_log_likelihood = 0.0
    for seed, batch in enumerate(BATCHES):
        loss = loss_of(
            model, [prompts[i] for i in batch], torch.tensor(LABELS)[list(batch)], seeded(seed)
        )
        epoch += len(batch) * loss.total.item()
        # The same masks, S for the batch or S for each of its examples.
        groups = len(batch) if noise_per == "example" else 1
        masks = relaxed_masks(mask_logits(model), 0.7, groups * samples, seeded(seed)).detach()
        for row, i in enumerate(batch):
            own = masks.view(groups, samples, *masks.shape[1:])[row % groups]
            logits = twin.bank_logits([prompts[i]], own, tuple(loss_of.labels.tolist()))[0]
            negative_log_likelihood -= logits.log_softmax(-1)[:, LABELS[i]].mean().item()

    posterior = Bernoulli(logits=mask_logits(model).detach())
    kl = kl_divergence(posterior, Bernoulli(torch.tensor(0.3))).sum().item()
    assert epoch == pytest.approx(negative_log_likelihood + kl, rel=1e-5)
    assert kl > 1, "the KL is a visible part of the sum"


def one_loss(base, model, noise_per="example", count=7, **options):
    prompts = tiny_prompts(base, SENTENCES)[:count]
    loss_of = objective(base, noise_per=noise_per, **options)
    return loss_of(model, prompts, torch.tensor(LABELS[:count]), seeded(0))


def test_the_kl_is_weighed_by_the_size_of_the_training_set_alone():
    base = tiny_base()
    model = tiny_adapter(base)
    for size in (1, 7, 1000):
        for count in (1, 7):
            loss = one_loss(base, model, train_size=size, count=count)
            torch.testing.assert_close(loss.total.detach(), loss.nll + loss.penalty / size)


def test_a_new_adapter_has_no_kl_and_the_likelihood_of_the_base():
    base = tiny_base()
    prompts = tiny_prompts(base, SENTENCES)
    label_ids = list(PromptTokenizer(base.tokenizer, FORMAT).label_ids)
    expected = []
    for prompt, label in zip(prompts, LABELS, strict=True):
        ids = torch.tensor([[*prompt.prompt_ids, *prompt.cue_ids]])
        logits = base.model(input_ids=ids).logits[0, -1, label_ids]
        expected.append(-logits.log_softmax(-1)[label])
    model = attach(base.model, lora_config(4, 8.0, MODULES, "tiny"), RankMasks(prior=0.9))
    loss = one_loss(base, model, prior=0.9)
    assert loss.penalty.item() == pytest.approx(0.0, abs=1e-5)
    torch.testing.assert_close(loss.nll, torch.stack(expected).mean())


def test_gradients_of_the_mask_logits_are_those_of_both_terms():
    base = tiny_base()
    model = tiny_adapter(base)
    layers = list(stochastic_layers(model).values())

    def gradient(size: int) -> Tensor:
        model.zero_grad()
        one_loss(base, model, train_size=size, prior=0.2).total.backward()
        return torch.stack([layer.mask_logits.grad for layer in layers])

    likelihood_only = gradient(10**12)
    assert likelihood_only.abs().min() > 0
    phi = mask_logits(model).detach().requires_grad_()
    kl_divergence(Bernoulli(logits=phi), Bernoulli(torch.tensor(0.2))).sum().backward()
    torch.testing.assert_close(gradient(7) - likelihood_only, phi.grad / 7, rtol=1e-4, atol=1e-5)


def test_masks_depend_on_the_generator_and_are_shared_as_configured():
    base = tiny_base()
    model = tiny_adapter(base)
    label_ids = objective(base).labels
    prompts = tiny_prompts(base, ("good",)) * 3

    def nll(label: int, **options: Any) -> list[float]:
        loss_of = objective(base, **options)
        return [
            loss_of(model, prompts, torch.full((3,), label), seeded(seed)).nll.item()
            for seed in (0, 0, 1)
        ]

    for noise_per in ("example", "batch"):
        first, again, other = nll(1, noise_per=noise_per)
        assert first == again != other
    # Equal examples under one mask have equal likelihoods; under masks of their own they differ.
    twin = objective(base, noise_per="batch")
    alone = twin(model, prompts[:1], torch.tensor([1]), seeded(0)).nll
    together = twin(model, prompts, torch.tensor([1, 1, 1]), seeded(0)).nll
    torch.testing.assert_close(alone, together)
    own = objective(base, noise_per="example")
    assert own(model, prompts, torch.tensor([1, 1, 1]), seeded(0)).nll != pytest.approx(
        alone.item(), abs=1e-4
    )
    assert len(label_ids) == 2


def test_a_cache_is_ignored_where_the_adapter_reads_the_prompt():
    base = tiny_base()
    cache = PromptCache(2**30)
    loss_of = objective(base, cache, scope="all_tokens")
    loss_of(tiny_adapter(base), [Prompt((5, 6), (7,))], torch.tensor([0]), seeded(0))
    assert cache.bytes == 0


def test_a_distribution_on_one_label_is_that_label():
    scores = torch.randn(4, 3, 5, generator=seeded(0))
    labels = torch.tensor([0, 4, 2, 2])
    found = cross_entropy(scores, torch.nn.functional.one_hot(labels, 5).float())
    torch.testing.assert_close(found, cross_entropy(scores, labels))


def test_a_soft_target_asks_for_itself_and_padding_for_nothing():
    scores = torch.tensor([[[1.0, -1.0, -torch.inf]], [[0.0, 2.0, 1.0]]], requires_grad=True)
    targets = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.5, 0.3]])
    loss = cross_entropy(scores, targets)
    loss.backward()
    logs = scores.detach().log_softmax(-1)
    by_hand = -(0.5 * logs[0, 0, :2].sum() + (targets[1] * logs[1, 0]).sum()) / 2
    torch.testing.assert_close(loss.detach(), by_hand)
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad[:, 0], (scores.detach()[:, 0].softmax(-1) - targets) / 2)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
def test_labels_of_each_prompt_are_read_off_together_as_alone(scope, cached):
    base = tiny_base()
    model = tiny_adapter(base)
    tokenizer = QuestionTokenizer(base.tokenizer, QuestionFormat(answer_cue="\nSentiment:"))
    options = ("good", "fair", "bad", "fairly bad")
    questions = [Question("choice", "How?", tuple(map(Option, options[:n]))) for n in (2, 4, 3)]
    prompts = [tokenizer.encode(Asked("So so.", q)) for q in questions]
    targets = torch.tensor([[1.0, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 1.0, 0]])
    # Without noise of their own, so that each can be asked by itself.
    method = Dalorra(noise_per="batch", samples=2)
    cache = PromptCache(2**30) if cached else None
    loss_of = Objective(method, None, scope, 3, cache)
    together = loss_of(model, prompts, targets, seeded(3))
    alone = [
        loss_of(model, [one], target[None, : len(q.options)], seeded(3)).nll
        for one, q, target in zip(prompts, questions, targets, strict=True)
    ]
    assert together.nll.item() == pytest.approx(sum(alone).item() / 3, abs=1e-5)  # type: ignore[union-attr]
