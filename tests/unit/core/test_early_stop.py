"""Whatever the rest of the bank would have said, stopping changes neither label nor decision."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dalorra.adapter.directory import read_adapter
from dalorra.decision.novelty import Novelty
from dalorra.decision.policy import Policy
from dalorra.decision.predictive import PosteriorSamples, Prediction, summarise
from dalorra.early_stop import certain, predict_in_stages, stages
from dalorra.forward.llama.base import ArrangedLlama
from dalorra.forward.llama.prefix_cache import PrefixCache
from dalorra.posteriors.bank import BankSpec
from dalorra.predictor import Predictor
from tests.tiny import SENTENCES, save_tiny_adapter, tiny_base

LABELS = ("a", "b", "c", "d")


def policy(min_probability: float, max_variance: float, temperature: float = 1.0) -> Policy:
    return Policy(
        min_probability=min_probability,
        max_variance=max_variance,
        temperature=temperature,
        source="made up for a test",
    )


def stopped(samples: PosteriorSamples, rule: Policy, may_stop: list[bool]) -> list[Prediction]:
    """The answers when the members of a known bank are asked in stages."""
    passes = samples.probabilities.shape[1]

    def run(prompts, members):
        part = samples.probabilities[list(prompts)][:, list(members)]
        return PosteriorSamples(part, samples.weights)

    return predict_in_stages(
        run,
        range(len(may_stop)),  # type: ignore[arg-type]  # stand for prompts
        [rule if may else None for may in may_stop],
        members=passes,
        labels=LABELS[: samples.probabilities.shape[-1]],
    )


@st.composite
def banks(draw) -> PosteriorSamples:
    """Inputs that lean to a label, steady or not, with confident, split and extreme members."""
    batch, passes, masks = (draw(st.integers(1, n)) for n in (4, 14, 3))
    labels = draw(st.integers(2, len(LABELS)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    lean = draw(st.sampled_from([0.0, 1.0, 4.0, 30.0])) * normal(batch, 1, 1, labels)
    noise = draw(st.sampled_from([0.0, 1e-4, 0.1, 1.0, 30.0]))
    logits = lean + noise * normal(batch, passes, masks, labels)
    weights = torch.rand(masks, generator=generator) + 0.01
    return PosteriorSamples(logits.softmax(-1), weights / weights.sum())


rules = st.builds(
    policy,
    st.sampled_from([0.0, 0.3, 0.5, 0.6, 0.8, 0.85, 0.95, 1.0, 2.0]),
    st.sampled_from([0.0, 1e-6, 0.001, 0.02, 0.09, 0.1, 0.2, 0.25]),
)


@given(banks(), rules, st.data())
@settings(max_examples=100, deadline=None)
def test_stopping_never_changes_label_or_decision(samples, rule, data):
    batch, passes = samples.probabilities.shape[:2]
    may_stop = data.draw(st.lists(st.booleans(), min_size=batch, max_size=batch))
    whole = summarise(samples, LABELS[: samples.probabilities.shape[-1]])
    for early, full, allowed in zip(stopped(samples, rule, may_stop), whole, may_stop, strict=True):
        assert early.label == full.label
        assert (
            rule.decide(early.probability, early.variance).decision
            == rule.decide(full.probability, full.variance).decision
        )
        assert passes // 2 < early.samples <= passes
        if not allowed:
            assert early == full


@given(banks(), rules)
@settings(max_examples=100, deadline=None)
def test_certainty_outlives_the_worst_members(samples, rule):
    """The members to come all vote for one label, whichever, or for none."""
    batch, used, masks, labels = samples.probabilities.shape
    for rest in (1, 2, used):
        sure = certain(samples, used + rest, [rule] * batch)
        verdicts = []
        for vote in range(labels + 1):
            one = torch.zeros(labels) if vote < labels else torch.full((labels,), 1 / labels)
            if vote < labels:
                one[vote] = 1.0
            worst = one.expand(batch, rest, masks, labels)
            after = PosteriorSamples(
                torch.cat([samples.probabilities, worst], dim=1), samples.weights
            )
            verdicts.append(
                [
                    (p.label, rule.decide(p.probability, p.variance).decision)
                    for p in summarise(after, LABELS[:labels])
                ]
            )
        for input_, is_sure in enumerate(sure.tolist()):
            if is_sure:
                assert len({verdict[input_] for verdict in verdicts}) == 1


@pytest.mark.parametrize(
    ("members", "expected"),
    [(1, [1]), (2, [2]), (3, [2, 1]), (10, [6, 2, 1, 1]), (20, [11, 5, 2, 1, 1])],
)
def test_the_stages_are_the_bank_in_its_order(members, expected):
    assert [len(stage) for stage in stages(members)] == expected
    assert [m for stage in stages(members) for m in stage] == list(range(members))


def yes(*probabilities: float) -> PosteriorSamples:
    p = torch.tensor(probabilities, dtype=torch.float64)
    return PosteriorSamples(torch.stack([1 - p, p], dim=-1)[None, :, None], torch.ones(1))


def test_a_case_worked_out_by_hand():
    first = yes(*[0.9, 1.0] * 4)  # A = 7.6, B = 7.24; of ten, p̄ ends in [0.76, 0.96]
    # 8 / 10 of 0.0025 is the least variance, 0.724 − 0.76 + 0.76 · 0.24 = 0.1464 the greatest.
    for rule, sure in (
        (policy(0.7, 0.147), True),  # accept
        (policy(0.7, 0.146), False),  # accept, or escalate
        (policy(0.77, 0.147), False),  # accept, or clarify
        (policy(0.97, 0.147), True),  # clarify
        (policy(0.7, 0.0019), True),  # escalate
        (policy(0.7, 0.0021), False),  # escalate, or accept
    ):
        assert certain(first, 10, [rule]).tolist() == [sure], rule


def test_a_label_that_can_still_be_overtaken_is_not_certain():
    rule = policy(0.0, 0.25)  # accepts whatever the label is
    assert not certain(yes(1.0, 1.0, 1.0, 1.0, 1.0), 10, [rule])
    assert certain(yes(1.0, 1.0, 1.0, 1.0, 1.0, 1.0), 10, [rule])
    assert not certain(yes(1.0, 1.0, 1.0, 1.0, 1.0, 0.0), 10, [rule])


def test_a_number_that_is_none_is_never_certain():
    assert not certain(yes(1.0, float("nan"), 1.0), 4, [policy(0.0, 0.25)])


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    for scope in ("answer_tokens", "all_tokens"):
        save_tiny_adapter(folder / scope, tiny_base(), scope, bank=BankSpec(samples=9))
    return folder


def predictor_of(folder, scope: str, **options) -> Predictor:
    base = tiny_base()
    cache = options.pop("cache", 0)
    packed = ArrangedLlama(base.model, PrefixCache(cache)) if cache else None
    adapter = read_adapter(folder / scope)
    predictor = Predictor.from_adapter(adapter, base, packed=packed, **options)
    predictor.policy = policy(0.6, 1e-4)
    return predictor


@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
@pytest.mark.parametrize("options", [{}, {"row_budget": 30}, {"cache": 1 << 20}])
def test_a_predictor_answers_alike_with_fewer_samples(adapters, scope, options):
    predictor = predictor_of(adapters, scope, **options)
    prompts = [predictor.encode(text) for text in (*SENTENCES, "no", "fine", "x" * 30)]
    asked = [True, False] * 3 + [True]
    rule = predictor.policy
    early = predictor.predict(prompts, [rule if may else None for may in asked])
    full = predictor.predict(prompts)
    for one, whole in zip(early, full, strict=True):
        assert one.label == whole.label
        verdicts = [rule.decide(p.probability, p.variance) for p in (one, whole)]
        assert verdicts[0].decision == verdicts[1].decision
        assert len(one.sample_probabilities) == one.samples
        assert one.sample_probabilities == pytest.approx(
            whole.sample_probabilities[: one.samples], abs=1e-5
        )
    assert any(one.samples < 9 for one in early), "some stop"
    assert all(one.samples == 9 for one, may in zip(early, asked, strict=True) if not may)


def test_an_adapter_that_tells_novelty_uses_its_whole_bank(adapters):
    predictor = predictor_of(adapters, "answer_tokens")
    prompts = [predictor.encode(text) for text in SENTENCES]
    features = predictor.novelty_features(prompts)
    predictor.novelty = Novelty.fit(
        features, features, adapter_digest=predictor.adapter_digest, components=2
    )
    early = predictor.predict(prompts, [predictor.policy] * len(prompts))
    assert early == predictor.predict(prompts)
    assert all(one.samples == 9 and one.novelty is not None for one in early)
