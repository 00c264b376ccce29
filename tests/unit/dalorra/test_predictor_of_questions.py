"""A predictor whose inputs are questions about states, from its directory to its answers."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dalorra.adapter.directory import read_adapter
from dalorra.decision.predictive import PosteriorSamples, summarise
from dalorra.errors import AdapterError, InputError
from dalorra.forward.arranged import arrange, question_network_on
from dalorra.forward.batches import by_state, tree_row_count
from dalorra.forward.llama.questions import QuestionLlama
from dalorra.posteriors.bank import BankSpec
from dalorra.predictor import Predictor
from dalorra.prompts import Prompt, Scope
from dalorra.question_prompts import QuestionFormat
from dalorra.questions import Asked, Option, Question
from dalorra.shared_base import SharedBase
from tests.tiny import predictor_on, save_tiny_adapter, tiny_bank, tiny_base
from tests.tiny_encoder import tiny_encoder_adapter, tiny_encoder_base

SCOPES: tuple[Scope, ...] = ("answer_tokens", "all_tokens")
STATES = ("I laughed :)", "So bad that it is fun again, and then it ends")
TONE = Question("choice", "Tone?", tuple(map(Option, ("positive", "negative", "odd"))))
LATE = Question.noul("Is it late?")
STARS = Question("score", "How many stars?", tuple(map(Option, ("1", "2", "3", "four", "five"))))
ASKED = [
    *(Asked(STATES[0], question) for question in (TONE, LATE, STARS)),
    *(Asked(STATES[1], question) for question in (STARS, TONE)),
    Asked(STATES[0], Question.noul("Is it odd?", yes="it is", no="it is not")),
]

every_scope = pytest.mark.parametrize("scope", SCOPES)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> Path:
    """One adapter directory per scope."""
    folder = tmp_path_factory.mktemp("questions")
    for scope in SCOPES:
        save_tiny_adapter(
            folder / scope,
            tiny_base(layers=3),
            scope,
            prompt=QuestionFormat(),
            bank=BankSpec(samples=4),
            max_tokens=250,
        )
    return folder


def predictor_of(adapters: Path, scope: Scope, **options) -> Predictor:
    return predictor_on(adapters / scope, tiny_base(layers=3), **options)


def encoded(predictor: Predictor) -> list[Prompt]:
    return [predictor.encode(value) for value in ASKED]


def same(found, wanted) -> None:
    for name, value in asdict(found).items():
        assert value == pytest.approx(asdict(wanted)[name], abs=1e-5), name


def test_it_says_what_it_is(adapters):
    predictor = predictor_of(adapters, "all_tokens")
    assert (predictor.labels, predictor.fields) == ((), ())
    assert (predictor.samples, predictor.max_tokens) == (4, 250)
    assert predictor.card.digest == read_adapter(adapters / "all_tokens").digest
    with pytest.raises(AdapterError, match="no labels of its own"):
        _ = predictor.label_ids


@every_scope
def test_every_answer_is_over_the_options_of_its_question(adapters, scope):
    predictor = predictor_of(adapters, scope)
    prompts = encoded(predictor)
    answers = predictor.predict(prompts)
    for asked, prompt, answer in zip(ASKED, prompts, answers, strict=True):
        names = [option.name for option in asked.question.options]
        assert list(answer.probabilities) == names
        assert sum(answer.probabilities.values()) == pytest.approx(1)
        samples = predictor.posterior_samples([prompt])
        assert samples.by_sample.shape == (1, 4, len(names))
        same(answer, summarise(samples, names)[0])
    assert any(answer.variance > 1e-4 for answer in answers)
    for mean, answer in zip(predictor.predict_mean(prompts), answers, strict=True):
        assert (mean.variance, mean.samples) == (0.0, 1)
        assert list(mean.probabilities) == list(answer.probabilities)


@every_scope
@given(
    chosen=st.lists(st.integers(0, len(ASKED) - 1), min_size=1, max_size=9),
    budget=st.sampled_from([1, 60, 150, 400, 10_000]),
    price=st.sampled_from([0, 40, 10**6]),
)
@settings(deadline=None, max_examples=25)
def test_neither_company_nor_budget_change_an_answer(adapters, scope, chosen, budget, price):
    predictor = predictor_of(adapters, scope)
    prompts = encoded(predictor)
    wanted = predictor.predict(prompts)
    features = predictor.novelty_features(prompts)
    predictor.batching = replace(predictor.batching, budget=budget, price=price)
    group = [prompts[i] for i in chosen]
    for place, answer in zip(chosen, predictor.predict(group), strict=True):
        same(answer, wanted[place])
    found = predictor.novelty_features(group)
    torch.testing.assert_close(found, features[chosen], rtol=1e-4, atol=1e-4)


@every_scope
def test_states_share_forwards_as_long_as_their_trees_fit(adapters, scope, monkeypatch):
    predictor = predictor_of(adapters, scope)
    prompts, forwards, in_turn = encoded(predictor), [], []
    run, one_by_one = QuestionLlama.answers, QuestionLlama.in_turn

    def one_forward(network, group, samples):
        forwards.append(list(group))
        return run(network, group, samples)

    def several(network, group, samples, budget):
        in_turn.append(list(group))
        monkeypatch.setattr(QuestionLlama, "answers", run)
        found = one_by_one(network, group, samples, budget)
        monkeypatch.setattr(QuestionLlama, "answers", one_forward)
        return found

    monkeypatch.setattr(QuestionLlama, "answers", one_forward)
    monkeypatch.setattr(QuestionLlama, "in_turn", several)
    trees = [[prompts[i] for i in places] for places in by_state(prompts).values()]
    small, large = sorted(tree_row_count(tree, 4, scope) for tree in trees)
    for budget, together, alone in (
        (small + large, [2], 0),
        (small + large - 1, [1, 1], 0),
        (large - 1, [1], 1),
        (small - 1, [], 2),
    ):
        predictor.batching = replace(predictor.batching, budget=budget, price=10**6)
        predictor.predict(prompts)
        assert [len(by_state(group)) for group in forwards] == together
        assert len(in_turn) == alone
        forwards.clear()
        in_turn.clear()


@every_scope
def test_it_prices_what_a_question_shares(adapters, scope):
    predictor = predictor_of(adapters, scope)
    first, second, *_ = encoded(predictor)
    assert predictor.state_of(first) == predictor.state_of(second)
    assert predictor.state_of(first).rows == first.shared * (4 if scope == "all_tokens" else 1)
    together = tree_row_count([first, second], 4, scope)
    alone = predictor.packed_rows(first) + predictor.packed_rows(second)
    assert together == alone - predictor.state_of(first).rows
    other = predictor.encode(Asked(STATES[1], TONE))
    assert predictor.state_of(other).name != predictor.state_of(first).name


def test_nothing_asked_nothing_answered(adapters):
    predictor = predictor_of(adapters, "answer_tokens")
    assert predictor.predict([]) == []
    assert len(predictor.novelty_features([])) == 0


@every_scope
def test_warming_up_runs_the_smallest_and_the_largest_input(adapters, scope, monkeypatch):
    predictor, lengths = predictor_of(adapters, scope), []
    predict = predictor.predict
    monkeypatch.setattr(
        predictor, "predict", lambda ps: lengths.extend(p.tokens for p in ps) or predict(ps)
    )
    for step in predictor.warm_up():
        step()
    assert max(lengths) == 250
    assert min(lengths) < 60


@every_scope
def test_it_is_served_after_its_golden_check_and_beside_others(adapters, scope, tmp_path):
    base = SharedBase(tiny_base(layers=3), prefix_cache_bytes=1 << 20)
    predictor = base.bind(base.read(adapters / scope))
    wanted = predictor_of(adapters, scope)
    for _ in range(2):
        for found, own in zip(
            predictor.predict(encoded(predictor)), wanted.predict(encoded(wanted)), strict=True
        ):
            same(found, own)
    assert base.prefix_cache is not None
    assert (base.prefix_cache.tokens_found > 0) is (scope == "answer_tokens")
    save_tiny_adapter(tmp_path / "labels", tiny_base(layers=3))
    labelled = base.bind(base.read(tmp_path / "labels"))
    assert labelled.predict([labelled.encode("good")])[0].label in labelled.labels


def test_the_golden_check_sees_another_answer(adapters, monkeypatch):
    base = tiny_base(layers=3)
    answers = QuestionLlama.label_logits
    monkeypatch.setattr(
        QuestionLlama,
        "label_logits",
        lambda *rest: [logits.flip(-1) for logits in answers(*rest)],
    )
    with pytest.raises(AdapterError, match="away from those of the unmodified model"):
        SharedBase(base).bind(read_adapter(adapters / "answer_tokens"))


def test_a_question_for_labels_and_a_text_for_questions_are_refused(adapters, tmp_path):
    predictor = predictor_of(adapters, "answer_tokens")
    with pytest.raises(InputError, match="answers questions"):
        predictor.encode("good")
    save_tiny_adapter(tmp_path / "labels", tiny_base(layers=3))
    labelled = predictor_on(tmp_path / "labels", tiny_base(layers=3))
    with pytest.raises(InputError, match="labels of its own"):
        labelled.encode(ASKED[0])


def test_samples_of_heads_that_are_integrated_and_sampled_are_joined():
    integrated = PosteriorSamples(torch.rand(2, 3, 4, 5), torch.tensor([0.1, 0.2, 0.3, 0.4]), 0.5)
    sampled = PosteriorSamples(torch.rand(1, 3, 1, 5), torch.ones(1), 0.5)
    joined = PosteriorSamples.joined([sampled, integrated])
    assert (joined.probabilities.shape, joined.error_ratio) == ((3, 3, 4, 5), 0.5)
    torch.testing.assert_close(joined.by_sample[:1], sampled.by_sample)
    torch.testing.assert_close(joined.by_sample[1:], integrated.by_sample)


def test_an_encoder_answers_no_questions():
    model = tiny_encoder_adapter(tiny_encoder_base())
    with pytest.raises(AdapterError, match="need a language model"):
        question_network_on(arrange(model.get_base_model()), model, tiny_bank(model), "all_tokens")
