import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from dalorra.adapter.directory import read_adapter
from dalorra.adapter.manifest import Card
from dalorra.decision.predictive import summarise
from dalorra.errors import BaseModelError, InputError
from dalorra.forward.batches import Batching, packed_row_count
from dalorra.forward.llama.network import PackedLlama
from dalorra.posteriors.bank import BankSpec
from dalorra.predictor import Predictor
from dalorra.prompts import Prompt
from tests.tiny import predictor_on, save_tiny_adapter, tiny_base, tiny_base_model

SCOPES = ["answer_tokens", "all_tokens"]
SENTENCES = ("good", "bad", "an odd little film, with no end", "meh", "I laughed :)", "so so so so")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> Path:
    """One adapter directory per scope."""
    folder = tmp_path_factory.mktemp("adapters")
    for scope in SCOPES:
        save_tiny_adapter(folder / scope, tiny_base(), scope, bank=BankSpec(samples=7))
    return folder


def predictor_of(adapters: Path, scope: str, **options) -> Predictor:
    return predictor_on(adapters / scope, tiny_base(), **options)


def encoded(predictor: Predictor) -> list[Prompt]:
    return [predictor.encode(sentence) for sentence in SENTENCES]


def test_it_says_what_it_is(adapters):
    predictor = predictor_of(adapters, "all_tokens")
    assert predictor.labels == ("negative", "positive")
    assert predictor.fields == ("sentence",)
    assert (predictor.samples, predictor.max_tokens) == (7, 64)
    assert predictor.scope == "all_tokens"
    digest = read_adapter(adapters / "all_tokens").digest
    assert predictor.card == Card("tiny-llama", "tiny", digest, "dalorra")


@pytest.mark.parametrize("scope", SCOPES)
def test_a_prediction_is_the_moments_of_the_samples(adapters, scope):
    predictor = predictor_of(adapters, scope)
    prompts = encoded(predictor)
    samples = predictor.posterior_samples(prompts).by_sample
    assert samples.shape == (6, 7, 2)
    assert predictor.packed_rows(prompts[0]) == packed_row_count(prompts[0], 7, scope)
    torch.testing.assert_close(samples.sum(-1), torch.ones(6, 7))
    assert predictor.predict(prompts) == summarise(samples, predictor.labels)
    assert predictor.predict(prompts) == predictor.predict(prompts), "there is no fresh noise"


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("price", [0, 10, 10**6])
@pytest.mark.parametrize("pads", [False, True])
@pytest.mark.parametrize("row_budget", [1, 40, 100, 250, 10_000])
def test_every_row_budget_gives_the_same_answers_and_is_kept(
    adapters, scope, row_budget, pads, price, monkeypatch
):
    whole = predictor_of(adapters, scope)
    whole.batching = Batching(10**6, price=10**6, padding=0.0, pads=False)
    split = predictor_of(adapters, scope)
    split.batching = Batching(row_budget, price, 1.0 if pads else 0.25, pads)
    prompts = encoded(whole)
    expected = whole.posterior_samples(prompts).by_sample
    forwards, long = [], []
    run, in_pieces = PackedLlama.answers, PackedLlama.in_pieces

    def one_forward(network, group, samples):
        forwards.append(list(group))
        return run(network, group, samples)

    def several(network, prompt, samples, budget):
        long.append(prompt)
        return in_pieces(network, prompt, samples, budget)

    monkeypatch.setattr(PackedLlama, "answers", one_forward)
    monkeypatch.setattr(PackedLlama, "in_pieces", several)
    found = split.posterior_samples(prompts).by_sample
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for group in forwards:
        rows = [packed_row_count(prompt, 7, scope) for prompt in group]
        computed = max(rows) * len(rows) if pads else sum(rows)
        assert computed <= row_budget
    assert all(packed_row_count(prompt, 7, scope) > row_budget for prompt in long)
    assert len(long) + sum(map(len, forwards)) == 6
    if row_budget == 10_000 and price == 10**6:
        assert len(forwards) == 1
    if row_budget == 10_000 and price == 0:
        assert len(forwards) == len({prompt.tokens for prompt in prompts}), "no padding at all"


@pytest.mark.parametrize("scope", SCOPES)
def test_alone_or_in_any_batch_the_answer_is_the_same(adapters, scope):
    predictor = predictor_of(adapters, scope)
    prompts = encoded(predictor)
    together = predictor.predict(prompts * 5)
    for index, answer in enumerate(together):
        (alone,) = predictor.predict([prompts[index % 6]])
        assert alone.label == answer.label
        assert alone.probabilities == pytest.approx(answer.probabilities, abs=1e-5)
        assert alone.variance == pytest.approx(answer.variance, abs=1e-5)
        assert alone.mutual_information == pytest.approx(answer.mutual_information, abs=1e-5)


def test_no_prompts_no_answers(adapters):
    predictor = predictor_of(adapters, "answer_tokens")
    assert predictor.predict([]) == []
    assert predictor.posterior_samples([]).by_sample.shape == (0, 7, 2)


def test_the_mean_mask_is_one_deterministic_pass(adapters):
    predictor = predictor_of(adapters, "answer_tokens")
    prompts = encoded(predictor)
    for mean, sampled in zip(
        predictor.predict_mean(prompts), predictor.predict(prompts), strict=True
    ):
        assert (mean.variance, mean.mutual_information, mean.samples) == (0.0, 0.0, 1)
        assert mean.probability != pytest.approx(sampled.probability, abs=1e-4)
        assert sampled.variance > 0


def test_encoding_follows_the_manifest(adapters):
    predictor = predictor_of(adapters, "answer_tokens")
    assert predictor.encode("x" * 200).truncated
    assert predictor.encode("x" * 200).tokens == 64
    with pytest.raises(InputError, match="the limit is 64"):
        predictor_of(adapters, "answer_tokens", on_overflow="reject").encode("x" * 200)


def test_a_prediction_says_where_its_input_was_cut(adapters):
    predictor = predictor_of(adapters, "answer_tokens")
    whole, cut = predictor.predict([predictor.encode("x" * n) for n in (20, 200)])
    assert (whole.cut_at, cut.cut_at) == (None, 64)


@pytest.mark.parametrize("scope", SCOPES)
def test_warming_up_runs_the_smallest_and_the_largest_input(adapters, scope, monkeypatch):
    predictor = predictor_of(adapters, scope)
    before = predictor.predict(encoded(predictor))
    lengths = []
    predict = predictor.predict
    monkeypatch.setattr(
        predictor, "predict", lambda ps: lengths.extend(p.tokens for p in ps) or predict(ps)
    )
    for step in predictor.warm_up():
        step()
    assert max(lengths) == 64
    assert min(lengths) < 25
    monkeypatch.undo()
    assert predictor.predict(encoded(predictor)) == before


def test_a_bfloat16_model_answers_in_float32_moments(adapters):
    base = tiny_base()
    base.model.to(torch.bfloat16)
    predictor = predictor_on(adapters / "answer_tokens", base)
    prompts = encoded(predictor)
    samples = predictor.posterior_samples(prompts).by_sample
    assert samples.dtype == torch.float32
    torch.testing.assert_close(samples.sum(-1), torch.ones(6, 7), rtol=0, atol=1e-6)
    exact = predictor_of(adapters, "answer_tokens").posterior_samples(prompts).by_sample
    assert (samples - exact).abs().max() < 0.1
    for answer in predictor.predict(prompts):
        assert all(math.isfinite(x) for x in asdict(answer).values() if isinstance(x, float))


def test_load_reads_the_base_model_that_it_is_given(adapters, tmp_path):
    folder = tiny_base_model(tmp_path / "tiny-llama")
    predictor = Predictor.load(
        adapters / "answer_tokens", str(folder), device="cpu", dtype="float32"
    )
    prompts = encoded(predictor)
    expected = predictor_of(adapters, "answer_tokens").predict(prompts)
    assert predictor.predict(prompts) == expected
    assert predictor.card.model == "tiny-llama"


def test_load_asks_for_the_adapters_own_base_model(adapters):
    with pytest.raises(BaseModelError, match="tiny-llama"):
        Predictor.load(adapters / "answer_tokens", device="cpu")
