"""The packed forwards on the real base model, and how far bfloat16 is from float32."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from dalorra.adapter.layer import (
    StochasticPeftModel,
    attach,
    detach,
    lora_config,
    stochastic_layers,
)
from dalorra.base.model import BaseModel, load_base_model
from dalorra.forward.reference import answer_logits
from dalorra.forward.reference_rows import pack
from dalorra.posteriors import RankMasks
from dalorra.posteriors.bank import BankSpec, MaskBank
from dalorra.predictor import Predictor
from dalorra.prompts import Scope
from tests.reference import PlainLora
from tests.tiny import predictor_before_saving, tiny_manifest
from training.tasks import TASKS

pytestmark = pytest.mark.integration

FORMAT = TASKS["sst2"].prompt_format
SENTENCES = (
    "This movie was fantastic!",
    "The plot was hard to follow.",
    "I've seen better films",
    "The quarterly earnings exceeded expectations.",
    "florgle wumpus theory extrapolates",
    "a gorgeous, witty, seductive movie",
    "it 's a charming and often affecting journey",
    "unflinchingly bleak and desperate",
)
BATCH = [
    " ".join((SENTENCES[i % 8], *(SENTENCES[(i + j) % 8] for j in range(1, 1 + i // 8))))
    for i in range(32)
]
# Largest difference of probability and of variance. Measured with a trained sentiment adapter on 96
# sentences, M = 10: 2.6e-3 and 5.4e-4 alone against a batch of 32, 2.9e-2 and 2.6e-3 against
# float32; no label changed. In float32, alone against a batch: 4.9e-7 and 1.3e-7. That was an AMD
# EPYC; an Intel Xeon with AMX has 1.4e-2 and 1.4e-3 alone against a batch in the test below.
BFLOAT16_BETWEEN_BATCHES = (0.02, 0.002)
BFLOAT16_FROM_FLOAT32 = (0.05, 0.01)


@contextmanager
def adapted(base: BaseModel) -> Iterator[StochasticPeftModel]:
    """A random adapter, φ different everywhere; the base is given back."""
    model = attach(
        base.model, lora_config(8, 16.0, ("q_proj", "v_proj", "lm_head"), base.name), RankMasks()
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in stochastic_layers(model).values():
            width = layer.down.shape[1]
            layer.down.copy_(torch.randn(layer.down.shape, generator=generator) / width**0.5)
            layer.up.copy_(0.15 * torch.randn(layer.up.shape, generator=generator))
            layer.mask_logits.copy_(torch.randn(layer.mask_logits.shape, generator=generator))
    try:
        yield model.eval()
    finally:
        detach(model)


def predictor_of(
    model: StochasticPeftModel, base: BaseModel, scope: Scope, samples: int
) -> Predictor:
    bank = BankSpec(samples=samples)
    manifest = tiny_manifest(base, model, scope, prompt=FORMAT, bank=bank, max_tokens=300)
    return predictor_before_saving(model, base, manifest, row_budget=10**6)


def batch_and_singles(predictor: Predictor, singles: range) -> tuple[Tensor, Tensor]:
    """Sample probabilities `[singles, M, K]` out of a batch of 32, and of each alone."""
    prompts = [predictor.encode(sentence) for sentence in BATCH]
    together = predictor.posterior_samples(prompts).by_sample[list(singles)]
    alone = torch.cat([predictor.posterior_samples([prompts[i]]).by_sample for i in singles])
    return together, alone


@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
def test_packed_equals_plain_lora_one_by_one(base_model, scope):
    plain = copy.deepcopy(base_model.model)
    with adapted(base_model) as model:
        predictor = predictor_of(model, base_model, scope, samples=3)
        prompts = [predictor.encode(sentence) for sentence in SENTENCES[:4]]
        assert len({prompt.tokens for prompt in prompts}) > 1, "ragged"
        label_ids = predictor.tokenizer.label_ids
        assert isinstance(predictor.bank, MaskBank)
        expected = PlainLora(plain, model, scope).bank_logits(
            prompts, predictor.bank.masks, label_ids
        )
        with torch.inference_mode():
            packed = answer_logits(
                model, pack(prompts, range(3), scope), predictor.bank, torch.tensor(label_ids)
            )
        found = predictor.posterior_samples(prompts).by_sample
    torch.testing.assert_close(packed, expected, rtol=1e-4, atol=1e-3)  # logits of about 15
    torch.testing.assert_close(found, expected.softmax(-1), rtol=0, atol=1e-4)
    assert expected.softmax(-1).std(dim=1).max() > 0.05, "the samples differ"


@pytest.mark.parametrize(("scope", "samples"), [("answer_tokens", 10), ("all_tokens", 2)])
def test_alone_or_in_a_batch_of_32_the_answer_is_the_same_in_float32(base_model, scope, samples):
    with adapted(base_model) as model:
        predictor = predictor_of(model, base_model, scope, samples)
        together, alone = batch_and_singles(predictor, range(0, 32, 5))
    assert (together - alone).abs().max() < 1e-5


def test_bfloat16_answers_differ_by_no_more_than_the_documented_noise(base_model):
    half = load_base_model(device="cpu", dtype="bfloat16")
    with adapted(half) as model:
        together, alone = batch_and_singles(
            predictor_of(model, half, "answer_tokens", 10), range(32)
        )
    with adapted(base_model) as model:
        exact, _ = batch_and_singles(
            predictor_of(model, base_model, "answer_tokens", 10), range(32)
        )
    for found, expected, probability, variance in (
        (together, alone, *BFLOAT16_BETWEEN_BATCHES),
        (alone, exact, *BFLOAT16_FROM_FLOAT32),
    ):
        assert (found.mean(1) - expected.mean(1)).abs().max() <= probability
        assert (moment(found) - moment(expected)).abs().max() <= variance
    assert (alone - exact).abs().max() > 1e-4, "this is bfloat16"


def moment(samples: Tensor) -> Tensor:
    return samples.var(dim=1, correction=0)
