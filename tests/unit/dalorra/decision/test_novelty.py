"""Novelty: a valid p-value, a file that is checked, and the input that the variance cannot see."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy.stats import beta as beta_distribution

from dalorra.adapter.directory import read_adapter
from dalorra.adapter.layer import module_tensors
from dalorra.decision.novelty import LAST_DEPTH, NOVELTY_FILE, SHARES, Novelty
from dalorra.decision.policy import Decision, Policy
from dalorra.decision.policy_digest import with_digest
from dalorra.errors import AdapterError, ConfigError
from dalorra.shared_base import SharedBase
from tests.tiny import (
    SENTENCES,
    answer,
    packed,
    predictor_on,
    save_tiny_adapter,
    tiny_adapter,
    tiny_bank,
    tiny_base,
    tiny_prompts,
)

DIGEST = "a" * 64
POLICY = Policy(min_probability=0.5, max_variance=0.25, source="a test", min_novelty_p=0.05)


def draw(n: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    """Heavy-tailed features at two depths, `[n, 2, 12]`."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((n, 2, 12), generator=generator) * torch.linspace(0.1, 3.0, 12)
    return x / torch.rand((n, 1, 1), generator=generator).clamp_min(0.05) + shift


@pytest.fixture(scope="module")
def fitted() -> Novelty:
    return Novelty.fit(draw(200, 0), draw(99, 1), adapter_digest=DIGEST, components=8)


# --- the p-value ---


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.integers(-4, 4))
def test_the_p_value_is_one_plus_those_at_least_as_far_over_n_plus_one(scores, score):
    novelty = at_distances(torch.tensor(scores, dtype=torch.float32))
    (p,) = novelty.p_values(torch.tensor([[[float(score)]]]))
    at_least = sum(s**2 >= score**2 for s in scores)
    assert p == pytest.approx((1 + at_least) / (len(scores) + 1))


@pytest.mark.parametrize("classes", [None, list("ab") * 10])
@pytest.mark.parametrize("level", [0.01, 0.05, 0.2])
def test_at_most_the_level_of_usual_inputs_is_escalated_for_novelty(level, classes):
    """Over draws of training data, calibration data and input: exact up to the simulation."""
    policy = POLICY.model_copy(update={"min_novelty_p": level})
    draws, per_draw, escalated = 300, 40, 0
    for seed in range(draws):
        novelty = Novelty.fit(
            draw(20, 3 * seed),
            draw(99, 3 * seed + 1),
            adapter_digest=DIGEST,
            classes=classes,
            components=4,
        )
        for p in novelty.p_values(draw(per_draw, 3 * seed + 2)):
            verdict = policy.decide(answer(1.0, 0.0, p))
            escalated += verdict.decision is Decision.ESCALATE
    share = escalated / (draws * per_draw)
    # Given the calibration the share is Beta-distributed around the level: that is what spreads.
    margin = 4 * (level * (1 - level) * (1 / (100 * draws) + 1 / (draws * per_draw))) ** 0.5
    assert share <= level + margin
    assert share >= level - 0.01 - margin, "the level is used, not only kept"


# --- the level: a promise in nearly every draw of the calibration examples ---


def at_distances(distances: torch.Tensor) -> Novelty:
    """Calibrated on inputs at these distances, in one dimension with unit spread."""
    scores = distances.square().sort().values
    return Novelty(torch.zeros(1, 1), torch.ones(1, 1, 1), scores, torch.empty(0, 0), DIGEST)


@pytest.mark.parametrize(("n", "share"), [(59, 0.05), (300, 0.01), (300, 0.05), (1000, 0.01)])
@pytest.mark.parametrize("values", [1000, 10])
def test_a_share_is_promised_with_its_confidence_over_the_calibration_draw(n, share, values):
    """Distances are 0 to `values` − 1, alike probable: the share that is escalated is counted."""
    generator = torch.Generator().manual_seed(n)
    usual = torch.arange(values, dtype=torch.float32)[:, None, None]
    confidence, draws, above, above_by_mean = 0.95, 400, 0, 0
    for _ in range(draws):
        novelty = at_distances(torch.randint(values, (n,), generator=generator).float())
        p_values, level = novelty.p_values(usual), novelty.level(share, confidence)
        above += sum(p < level for p in p_values) > share * values
        above_by_mean += sum(p < share for p in p_values) > share * values
    margin = 4 * ((1 - confidence) * confidence / draws) ** 0.5
    assert above / draws <= 1 - confidence + margin
    if values > 100:
        assert above_by_mean / draws > 1 - confidence + margin, "ε itself keeps it on average only"


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 600), st.floats(0.001, 0.5), st.floats(0.5, 0.999))
def test_the_level_is_the_highest_that_the_beta_distribution_allows(n, share, confidence):
    novelty, k = at_distances(torch.arange(float(n))), np.arange(1, n + 1)
    least = novelty.least_share(confidence)
    promised = [beta_distribution.cdf(part * least, 1, n) >= confidence for part in (0.98, 1.0)]
    assert promised == [False, True]
    if share < least:
        with pytest.raises(ConfigError, match=f"the least .* promised is {100 * least:.3g} %"):
            novelty.level(0.98 * share, confidence)
        share = least
    level = novelty.level(share, confidence)
    below = sum(p < level for p in novelty.p_values(torch.arange(n + 1.0)[:, None, None]))
    allowed = beta_distribution.cdf(share, k, n + 1 - k)
    # Where it equals the confidence, either is right.
    assert (allowed > confidence + 1e-9).sum() <= below <= (allowed > confidence - 1e-9).sum()


def test_too_few_calibration_examples_are_told_what_they_can_promise():
    novelty = at_distances(torch.arange(120.0))
    with pytest.raises(
        ConfigError,
        match=r"at most 1 % of usual inputs for novelty, with 95 % confidence, takes 299 held-out "
        r"examples, and the novelty features have 120: the least that can be promised is 2.47 %",
    ):
        novelty.level(0.01, 0.95)


# --- the share that is picked where none is asked for ---


def with_foreign(kinds: list[float], n: int = 1000) -> Novelty:
    """Calibrated on distances 0 to n − 1, beside texts of kinds at these distances."""
    novelty = at_distances(torch.arange(float(n)))
    return replace(novelty, foreign=torch.tensor(kinds)[:, None].square().expand(-1, 4))


@pytest.mark.parametrize(
    ("kinds", "picked"),
    [
        ([999.5] * 5, 0.01),  # the smallest finds them
        ([970.0] * 3 + [10.0] * 2, 0.05),  # by the median: two are the adapter's own kind
        ([970.0] * 2 + [10.0] * 3, 0.01),  # nothing finds most of them, so nothing is paid
        ([], 0.01),
    ],
)
def test_the_share_that_is_picked_finds_most_kinds_at_the_least_cost(kinds, picked):
    novelty = with_foreign(kinds)
    share, level = novelty.pick(0.95)
    assert share == picked
    assert level == novelty.level(share, 1 - 0.05 / len(SHARES))
    assert level < novelty.level(share, 0.95), "the confidence is divided among what was tried"


@given(st.integers(1, 300), st.floats(0.5, 0.999))
@settings(max_examples=50, deadline=None)
def test_few_calibration_examples_pick_what_they_can_promise(n, confidence):
    share, level = with_foreign([n + 1.0], n).pick(confidence)
    assert share in SHARES or n < 2000
    assert beta_distribution.cdf(share, 1, n) >= confidence
    assert 1 / (n + 1) < level, "what is farther than all of them is novel"


# --- variants, extremes ---


def test_of_several_variants_the_farthest_counts(fitted):
    variants = torch.stack([draw(99, 1), draw(99, 2), draw(99, 3)], dim=1)  # [99, 3, 2, 12]
    novelty = Novelty.fit(draw(200, 0), variants, adapter_digest=DIGEST, components=8)
    scores = torch.stack([fitted.scores(variants[:, v]) for v in range(3)])
    torch.testing.assert_close(novelty.calibration, scores.amax(dim=0).sort().values)
    one = Novelty.fit(draw(200, 0), draw(99, 1)[:, None], adapter_digest=DIGEST, components=8)
    assert one.digest == fitted.digest


def spelt(n: int, seed: int) -> torch.Tensor:
    """`[n, 3, 1, 12]`: what an example says, and three ways to spell it that each move it."""
    generator = torch.Generator().manual_seed(seed)
    said = torch.randn((n, 1, 12), generator=generator)
    ways = torch.linspace(-1.0, 1.0, 3)[:, None] * torch.randn((n, 3, 12), generator=generator)
    return (said + ways)[:, :, None]


def escalated_by_way(variants: slice, level: float) -> torch.Tensor:
    """Share that is escalated of inputs spelt in each way and in their worst way, `[4]`."""
    counts, draws, per_draw = torch.zeros(4), 100, 40
    for seed in range(draws):
        novelty = Novelty.fit(
            spelt(20, 3 * seed).flatten(0, 1),
            spelt(99, 3 * seed + 1)[:, variants],
            adapter_digest=DIGEST,
            components=4,
        )
        p = torch.tensor(novelty.p_values(spelt(per_draw, 3 * seed + 2).flatten(0, 1)))
        p = p.view(per_draw, 3)
        counts += (torch.cat([p, p.amin(dim=1, keepdim=True)], dim=1) < level).sum(dim=0)
    return counts / (draws * per_draw)


def test_the_level_holds_for_every_variant_even_for_each_inputs_farthest():
    level = 0.1
    margin = 4 * (level * (1 - level) * (1 / (100 * 100) + 1 / (100 * 40))) ** 0.5
    shares = escalated_by_way(slice(None), level)
    assert (shares <= level + margin).all()
    assert shares[-1] >= level - 0.01 - margin
    as_written = escalated_by_way(slice(0, 1), level)
    assert as_written[-1] > level + 2 * margin, "without variants the test above fails"


def test_far_inputs_and_broken_ones_get_the_least_p_value(fitted):
    features = torch.cat([draw(5, 7, shift=1e4), torch.full((1, 2, 12), torch.nan)])
    assert fitted.p_values(features) == [pytest.approx(0.01)] * 6
    assert fitted.p_values(torch.empty(0, 1, 12)) == []


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_it_is_a_sum_of_mahalanobis_distances_from_the_nearest_class(classes):
    x, y, names = draw(500, 0), draw(20, 2), [f"class {i % classes}" for i in range(500)]
    x += torch.arange(500)[:, None, None] % classes  # the classes lie apart
    novelty = Novelty.fit(x, draw(9, 1), adapter_digest=DIGEST, classes=names)
    expected = torch.zeros(20, dtype=torch.float64)
    for depth, weight in enumerate((1.0, LAST_DEPTH)):
        parts = [x[k::classes, depth].double() for k in range(classes)]
        scatter = sum(torch.cov(part.T) * (len(part) - 1) for part in parts)
        inverse = torch.linalg.inv(scatter / (500 - classes))
        distances = []
        for part in parts:
            deviation = y[:, depth].double() - part.mean(0)
            distances.append((deviation @ inverse * deviation).sum(1))
        expected += weight * torch.stack(distances).amin(0)
    torch.testing.assert_close(novelty.scores(y).double(), expected, rtol=1e-4, atol=1e-4)


def test_what_lies_between_the_classes_is_novel():
    noise = torch.randn((300, 1, 2), generator=torch.Generator().manual_seed(0))
    x = noise + torch.tensor([-20.0, 20.0])[torch.arange(300) % 2, None, None]
    names = ["left", "right"] * 100
    between = torch.zeros(1, 1, 2)
    by_class = Novelty.fit(x[:200], x[200:], adapter_digest=DIGEST, classes=names)
    as_one = Novelty.fit(x[:200], x[200:], adapter_digest=DIGEST)
    assert by_class.p_values(between) == [pytest.approx(1 / 101)]
    assert as_one.p_values(between) == [1.0]
    torch.testing.assert_close(by_class.scores(x[:9]), by_class.scores(x)[:9])


def test_classes_with_fewer_than_two_examples_on_average_are_one_class():
    x, held_out = draw(30, 0), draw(9, 1)
    names = [f"class {i % 16}" for i in range(30)]
    as_one = Novelty.fit(x, held_out, adapter_digest=DIGEST)
    assert Novelty.fit(x, held_out, adapter_digest=DIGEST, classes=names).digest == as_one.digest
    apart = Novelty.fit(
        x, held_out, adapter_digest=DIGEST, classes=[f"{i % 15}" for i in range(30)]
    )
    assert apart.centres is not None
    assert apart.centres.shape == (15, 2, 12)
    with pytest.raises(ValueError, match="3 classes for 30 training examples"):
        Novelty.fit(x, held_out, adapter_digest=DIGEST, classes=names[:3])


def test_directions_without_spread_are_left_out():
    x = draw(50, 0)
    flat = torch.cat([x, torch.ones(50, 2, 3)], dim=-1)
    novelty, wider = (Novelty.fit(y, y[:2], adapter_digest=DIGEST) for y in (x, flat))
    elsewhere = torch.cat([draw(9, 1), torch.full((9, 2, 3), 7.0)], dim=-1)
    torch.testing.assert_close(wider.scores(elsewhere), novelty.scores(draw(9, 1)))


@pytest.mark.parametrize(("training", "calibration"), [(1, 5), (5, 0)])
def test_too_few_examples_are_refused(training, calibration):
    with pytest.raises(ValueError, match="two training examples and a calibration example"):
        Novelty.fit(draw(training, 0), draw(calibration, 1), adapter_digest=DIGEST)


# --- the file ---


@pytest.mark.parametrize("classes", [None, list("abcd") * 50])
def test_a_loaded_file_is_the_one_that_was_saved(fitted, tmp_path, classes):
    saved = Novelty.fit(draw(200, 0), draw(99, 1), adapter_digest=DIGEST, classes=classes)
    saved.save(tmp_path)
    loaded = Novelty.load(tmp_path, DIGEST)
    assert loaded.digest == saved.digest
    assert loaded.p_values(draw(30, 5)) == saved.p_values(draw(30, 5))
    assert [path.name for path in tmp_path.iterdir()] == [NOVELTY_FILE]
    other = Novelty.fit(draw(200, 0), draw(99, 2), adapter_digest=DIGEST, components=8)
    assert other.digest != fitted.digest


def changed(name: str, value: torch.Tensor):
    return lambda tensors: tensors | {name: value}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("mean", torch.full((2, 12), torch.nan)), "mean holds a non-finite value"),
        (changed("mean", torch.zeros(2, 11)), "mean and whitening do not fit"),
        (changed("mean", torch.zeros(12)), r"mean has shape \[12\]"),
        (changed("centres", torch.zeros(3, 2, 12)), "centres and whitening do not fit"),
        (changed("centres", torch.zeros(0, 2, 8)), r"centres has shape \[0, 2, 8\]"),
        (changed("calibration", torch.empty(0)), r"calibration has shape \[0\]"),
        (changed("calibration", torch.tensor([2.0, 1.0])), "not in order"),
        (lambda tensors: {k: v for k, v in tensors.items() if k != "foreign"}, "it holds cal"),
        (changed("more", torch.zeros(1)), "it holds calibration, foreign, mean, more, whitening"),
        (lambda tensors: {"mean": tensors["mean"]}, "it holds mean instead of"),
    ],
)
def test_a_damaged_file_is_refused(fitted, tmp_path, change, message):
    path = fitted.save(tmp_path)
    save_file(change(load_file(path)), path, metadata={"adapter_digest": DIGEST})
    with pytest.raises(AdapterError, match=message):
        Novelty.load(tmp_path, DIGEST)


def test_a_truncated_file_and_another_adapters_are_refused(fitted, tmp_path):
    path = fitted.save(tmp_path)
    with pytest.raises(AdapterError, match=r"another adapter \(aaaaaaaaaaaa…, this is bbbb"):
        Novelty.load(tmp_path, "b" * 64)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(AdapterError, match="damaged or truncated"):
        Novelty.load(tmp_path, DIGEST)


# --- an adapter with it ---


def with_novelty(path, scope="answer_tokens"):
    save_tiny_adapter(path, tiny_base(), scope)
    plain = predictor_on(path, tiny_base())
    features = plain.novelty_features([plain.encode(text) for text in SENTENCES])
    novelty = Novelty.fit(features, features, adapter_digest=plain.card.digest, components=1)
    novelty.save(path)
    return plain, novelty


@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
@pytest.mark.parametrize("options", [{}, {"row_budget": 1}, {"prefix_cache_bytes": 1 << 20}])
def test_answers_carry_it_however_they_are_computed(tmp_path, scope, options):
    plain, novelty = with_novelty(tmp_path / "a", scope)
    served = SharedBase(tiny_base(), **options).bind(read_adapter(tmp_path / "a"))
    prompts = [served.encode(text) for text in SENTENCES]
    expected = plain.novelty_features(prompts)
    for _ in range(2):  # the second time the prefix cache is warm
        torch.testing.assert_close(served.novelty_features(prompts), expected, rtol=1e-4, atol=1e-4)
    again = [p.novelty for p in served.predict(prompts)]
    # The calibration scores are these inputs' own: rounding may move each by one rank.
    assert again == pytest.approx(novelty.p_values(expected), abs=1.01 / 5)
    assert [p.novelty for p in plain.predict(prompts)] == [None] * 4


def test_a_policy_is_void_with_other_novelty_features(tmp_path):
    _, novelty = with_novelty(tmp_path / "a")
    with_digest(POLICY.model_copy(update={"novelty_digest": novelty.digest})).save(tmp_path / "a")
    policy = read_adapter(tmp_path / "a").policy
    assert policy is not None
    assert not policy.never_accepts
    (tmp_path / "a" / NOVELTY_FILE).unlink()
    policy = read_adapter(tmp_path / "a").policy
    assert policy is not None
    assert policy.never_accepts
    assert "other novelty features" in policy.decide(answer(1.0, 0.0)).reason
    without = POLICY.model_copy(update={"min_novelty_p": None, "novelty_digest": "0"})
    with_digest(without).save(tmp_path / "a")
    policy = read_adapter(tmp_path / "a").policy
    assert policy is not None
    assert not policy.never_accepts, "a policy without a level does not care"


def test_features_of_another_width_are_refused(tmp_path):
    plain, _ = with_novelty(tmp_path / "a")
    Novelty.fit(draw(9, 0), draw(9, 1), adapter_digest=plain.card.digest).save(tmp_path / "a")
    with pytest.raises(AdapterError, match="have 12 numbers, but the hidden states of tiny-llama"):
        predictor_on(tmp_path / "a", tiny_base())


# --- the blind spot ---


def test_an_input_in_the_null_space_has_no_variance_and_is_novel():
    """BayesLoRA, Proposition 1: A x = 0 gives Var = 0, however unlike the training data x is.

    Only the head is adapted, so that x is the very hidden state that novelty looks at.
    """
    base = tiny_base()
    inputs = tiny_prompts(base, (*SENTENCES, *(f"{a} {b}" for a in SENTENCES for b in "abcd")))
    model = tiny_adapter(base, modules=["lm_head"])
    bank = tiny_bank(model, 6)
    network = packed(model, torch.tensor([260, 270]), bank)

    def variance(x: torch.Tensor) -> torch.Tensor:
        """Of the first label's logit, `[B, 6, 1, d]` → `[B]`; a probability's may saturate."""
        with torch.inference_mode():
            logits = network.head.logits(x, range(6), bank)
        return logits.var(dim=1, correction=0)[:, 0]

    usual = network.hidden_states(inputs, range(6))
    far = 5.0 * torch.randn(usual.shape[-1], generator=torch.Generator().manual_seed(0))
    down = module_tensors(model)[0]["down"].detach()  # A, [r, d]
    blind = (far - torch.linalg.pinv(down) @ (down @ far)).expand(1, 6, 1, -1)
    assert (blind[0, 0, 0] @ down.T).abs().max() < 1e-4, "A x = 0"
    assert variance(blind).item() < 1e-9
    assert variance(far.expand(1, 6, 1, -1)).item() > 1e-3, "as far away, but felt"
    assert variance(usual).mean() > 1e-3

    features = usual.mean(dim=1)
    novelty = Novelty.fit(features[::2], features[1::2], adapter_digest=DIGEST, components=4)
    (p,) = novelty.p_values(blind.mean(dim=1))
    assert p == pytest.approx(1 / 11)
    policy = with_digest(POLICY.model_copy(update={"min_novelty_p": 0.1}))
    verdict = policy.decide(answer(0.99, 0.0, p))
    assert verdict.decision is Decision.ESCALATE
    assert verdict.reason == (
        "novelty p-value 0.0909 is below 0.1: the input is unlike those that the adapter was "
        "trained on"
    )
    assert policy.decide(answer(0.99, 0.0, 1.0)).decision is Decision.ACCEPT
