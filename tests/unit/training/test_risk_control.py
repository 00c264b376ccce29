import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapie.risk_control import BinaryClassificationController
from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value
from scipy import stats

from training.risk_control import (
    Ranked,
    Risk,
    ScoredExamples,
    Strictness,
    choose_steps,
    declare_strictness,
    first_step,
    mean_p_value,
    step_p_values,
    upper_limit,
)


def scored(p, v, wrong, target=0.1):
    p, v, wrong = np.asarray(p, float), np.asarray(v, float), np.asarray(wrong, float)
    return ScoredExamples(p, v, (Risk(wrong, np.ones(len(p), dtype=bool), target),))


def world(generator, n):
    """Overconfident answers whose variance tells something of its own."""
    margin, doubt = generator.normal(0.0, 2.5, n), generator.gamma(1.0, 0.8, n)
    samples = 1 / (1 + np.exp(-1.5 * (margin + doubt * generator.normal(size=(10, n)))))
    yes = samples.mean(axis=0)
    right = 1 / (1 + np.exp(-np.abs(margin) / (1 + doubt)))
    return np.maximum(yes, 1 - yes), samples.var(axis=0), generator.random(n) > right


def test_the_p_value_is_the_binomial_tail():
    # P(Binomial(3, 1/2) ≤ 1) = (1 + 3) / 8
    found = mean_p_value(np.array([0.0, 1.0, 3.0, 0.0]), np.array([3, 3, 3, 0]), 0.5)
    assert found == pytest.approx([1 / 8, 4 / 8, 1.0, 1.0])
    assert mean_p_value(np.array([5.0, 0.0]), np.array([5, 0]), 1.0).tolist() == [0.0, 1.0]


def test_fifty_nine_right_answers_are_needed_for_5_percent_at_95():
    found = mean_p_value(np.zeros(2), np.array([58, 59]), 0.05)
    assert (found <= 0.05).tolist() == [False, True]


@given(st.integers(1, 500), st.floats(0.0, 1.0), st.floats(0.001, 0.999))
def test_hoeffding_bentkus_is_mapie_s(n, mean, target):
    # MAPIE does not cap it at 1; sums that rounding lifts over a whole number differ.
    total = round(mean * n, 3)
    ours = mean_p_value(np.array([total]), np.array([n]), target, binary=False)[0]
    theirs = compute_hoeffding_bentkus_p_value(np.array([total / n]), n, target)[0, 0]
    near = compute_hoeffding_bentkus_p_value(np.array([max(total - 1e-6, 0.0) / n]), n, target)[
        0, 0
    ]
    assert min(near, 1.0) * (1 - 1e-6) <= ours <= min(theirs, 1.0) * (1 + 1e-6) + 1e-12


@pytest.mark.parametrize("binary", [True, False])
def test_the_upper_limit_is_where_the_test_turns(binary):
    for errors, n in ((0, 59), (3, 100), (17, 40)):
        limit = upper_limit(float(errors), n, 0.95, binary=binary)
        total, count = np.array([float(errors)]), np.array([n])
        below, above = (
            mean_p_value(total, count, target, binary=binary)[0]
            for target in (limit - 1e-6, limit + 1e-6)
        )
        assert above <= 0.05 < below
    interval = stats.binomtest(3, 100).proportion_ci(0.90, method="exact")
    assert upper_limit(3.0, 100, 0.95) == pytest.approx(interval.high)
    assert upper_limit(4.0, 4, 0.95, binary=binary) == pytest.approx(1.0)
    assert upper_limit(0.0, 0, 0.95, binary=binary) == 1.0


pairs = st.lists(
    st.tuples(st.floats(0.1, 1.0), st.floats(0.0, 1.0)), min_size=1, max_size=40
)  # probability, and the share of p(1 − p) that is the variance


@given(pairs, st.floats(0.0, 1.0))
@settings(deadline=None)
def test_a_step_accepts_as_its_thresholds_do_and_levels_are_nested(examples, kappa):
    p, share = map(np.array, zip(*examples, strict=True))
    data = scored(p, share * p * (1 - p), np.zeros(len(p)))
    strictness = Strictness(kappa)
    ranked = Ranked.by(strictness, data)
    assert sorted(ranked.order) == list(range(len(p)))
    for step in range(1, len(p) + 1):
        if ranked.last_whole(range(step, step + 1)) is None:
            continue
        tau_p, tau_v = strictness.thresholds(ranked.level_of(step))
        taken, other = ranked.order[:step], ranked.order[step:]
        assert (p[taken] >= tau_p).all()
        assert (data.variance[taken] <= tau_v + 1e-12).all()
        assert ((p[other] < tau_p) | (data.variance[other] > tau_v - 1e-12)).all()
    pairs_by_level = [strictness.thresholds(level) for level in np.linspace(0, 1, 101)]
    assert (np.diff(pairs_by_level, axis=0) * [1, -1] >= -1e-12).all()
    assert strictness.thresholds(0.0) == (0.0, pytest.approx(0.25))


def test_levels_are_refined_by_the_variance_only_where_kappa_says_so():
    p, v = np.array([0.9, 0.9, 0.6, 0.3]), np.array([0.0, 0.09, 0.0, 0.2])
    assert Strictness(1.0).levels(p, v).tolist() == p.tolist()
    # v = κ t(1 − t) at t = 1/2; above κ/4, t = (1 − 4v) / 2(1 − κ)
    assert Strictness(0.36).levels(p, v) == pytest.approx([0.9, 0.5, 0.6, 0.2 / 1.28])
    assert Strictness(0.0).levels(p, v) == pytest.approx([0.9, 0.32, 0.6, 0.1])


def test_ties_are_not_parted():
    p = np.array([0.9, 0.8, 0.8, 0.8, 0.7])
    ranked = Ranked.by(Strictness(1.0), scored(p, np.zeros(5), np.zeros(5)))
    assert [ranked.last_whole(range(1, stop)) for stop in range(1, 7)] == [None, 1, 1, 1, 4, 5]
    assert ranked.level_of(4) == pytest.approx(0.75)
    assert 0.7 - 1e-8 < ranked.level_of(5) < 0.7, "nothing less sure than any that was tested"


def test_kappa_is_small_where_the_variance_tells_and_1_where_it_does_not():
    generator = np.random.default_rng(2)
    p = generator.uniform(0.6, 0.99, 4000)
    share = generator.uniform(0.0, 0.5, 4000)
    wrong = generator.random(4000) < np.where(share > 0.3, 0.5, 0.02)
    assert 0.2 < declare_strictness(scored(p, share * p * (1 - p), wrong)).kappa < 0.32
    wrong = generator.random(4000) > p
    assert declare_strictness(scored(p, share * p * (1 - p), wrong)).kappa > 0.38
    few = scored(p[:9], (share * p * (1 - p))[:9], np.zeros(9))
    assert declare_strictness(few).kappa == 1.0, "no mistakes, no reason for a limit"


@pytest.mark.filterwarnings("ignore")  # MAPIE says that it is new
@pytest.mark.parametrize("seed", range(8))
def test_one_threshold_agrees_with_mapie(seed):
    p, _, wrong = world(np.random.default_rng(seed), 1500)
    data = scored(p, np.zeros(1500), wrong, target=0.15)
    ranked = Ranked.by(Strictness(1.0), data)
    steps = np.arange(29, 1500, 30)
    levels = np.array([ranked.level_of(step) for step in steps])
    oracle = BinaryClassificationController(
        lambda x: np.column_stack([1 - x[:, 0], x[:, 0]]),
        risk="precision",
        target_level=0.85,
        confidence_level=0.9,
        list_predict_params=levels,
        fwer_method="fixed_sequence",
    ).calibrate(p[:, None], (~wrong).astype(int))
    theirs = np.asarray(oracle.p_values).ravel()
    ours = step_p_values(ranked, data.risks)[steps - 1]
    count, errors = (totals[steps - 1] for totals in ranked.totals(data.risks[0]))
    # MAPIE multiplies its error rate by n again and rounds up: by chance one error too many, or
    # Hoeffding's bound where that is less.
    one_more = mean_p_value(np.minimum(errors + 1, count), count, 0.15)
    same = np.isclose(theirs, ours, atol=1e-12)
    assert (same | ((ours < theirs) & (theirs <= one_more * (1 + 1e-6)))).all()
    assert same.mean() > 0.4
    assert 0.0 < ours.min() < 0.1 < ours.max()


def test_of_a_few_rows_that_are_all_right_most_are_accepted():
    """Of 90, nine declare the levels and 81 test them: none wrong bounds the error at 3.6 %."""
    p = np.linspace(0.9, 0.99, 90)
    pilot, tested = (scored(p[part], np.zeros(90)[part], np.zeros(90)[part]) for part in SPLIT_90)
    for target in (0.05, 0.08):
        ranked = Ranked.by(declare_strictness(pilot), tested)
        assert choose_steps(ranked, pilot, tested, [target], 0.95) == [81]
    assert choose_steps(ranked, pilot, tested, [0.035], 0.95) == [None], "0 of 81 does not show it"


SPLIT_90 = (slice(0, 90, 10), [i for i in range(90) if i % 10])


def test_an_error_ends_the_sequence():
    p = np.linspace(0.99, 0.6, 90)
    wrong = np.zeros(90)
    wrong[75:] = 1
    data = scored(p, np.zeros(90), wrong, target=0.05)
    ranked = Ranked.by(Strictness(1.0), data)
    assert choose_steps(ranked, data, data, [0.05, 0.045, 0.01], 0.95) == [75, 75, None]
    wrong[10] = 1  # then 93 would be needed
    assert choose_steps(ranked, data, scored(p, np.zeros(90), wrong), [0.05], 0.95) == [None]


@pytest.mark.parametrize(("n", "errors"), [(81, 0), (180, 0), (360, 1), (720, 3), (4000, 11)])
def test_testing_starts_where_6_root_n_could_show_it(n, errors):
    pilot = scored(np.ones(10), np.zeros(10), np.zeros(10), target=0.05)
    start = first_step(n, pilot, 0.95)
    found = mean_p_value(np.full(2, float(errors)), np.array([start - 1, start]), 0.05)
    assert (found <= 0.05).tolist() == [False, True]
    usual = int(6 * np.sqrt(n))
    assert start <= max(usual, 59)
    assert mean_p_value(np.array([errors + 1.0]), np.array([usual]), 0.05) > 0.05


def test_a_label_that_is_rare_in_the_pilot_starts_later():
    p, none = np.linspace(0.6, 1, 40), np.zeros(40)
    everything = scored(p, none, none, target=0.05)
    half = Risk(none, np.arange(40) % 2 == 0, 0.05)
    pilot = ScoredExamples(p, none, (*everything.risks, half))
    # 59 without an error, of about every other example.
    assert first_step(100, everything, 0.95) == 59
    assert first_step(200, pilot, 0.95) == pytest.approx(2 * 59, abs=3)
    never = ScoredExamples(p, none, (Risk(none, none > 0, 0.05),))
    assert first_step(1000, never, 0.95) > 5 * first_step(1000, pilot, 0.95) / 2


# --- the promise, against a known truth ---


def wavy(generator, n):
    """The risk among accepted rises and falls: the surest answers are bad, and so is the middle."""
    p = generator.uniform(0.5, 1.0, n)
    wrong = np.where(p > 0.95, 0.3, np.where((p > 0.75) & (p < 0.8), 0.5, 0.05))
    return p, np.zeros(n), generator.random(n) < wrong


def flat(generator, n):
    """All answers are as good as the others, and just not good enough."""
    return generator.uniform(0.5, 1.0, n), np.zeros(n), generator.random(n) < 0.155


def tied(generator, n):
    """Four probabilities occur; among the surest the promise is just not kept."""
    p = generator.choice([0.7, 0.8, 0.9, 0.99], n)
    return p, np.zeros(n), generator.random(n) < np.where(p == 0.9, 0.02, 0.155)


def repeated(generator, n):
    """Thirty inputs, again and again."""
    which = generator.integers(0, 30, n)
    p = np.random.default_rng(5).uniform(0.5, 1.0, 30)[which]
    return p, np.zeros(n), which % 5 == 0


def plain_risk(wrong, p, target):
    return (Risk(wrong.astype(float), np.ones(len(p), dtype=bool), target),)


def costly(wrong, p, target):
    """A quarter of the false accepts cost four times as much as the others."""
    dear = wrong & (np.floor(p * 1e6) % 4 == 0)
    return (Risk(np.where(dear, 1.0, wrong / 4), np.ones(len(p), dtype=bool), target, False),)


def with_a_class(wrong, p, target):
    """Of a third of the answers the errors are promised by themselves, too."""
    chosen = np.floor(p * 1e6) % 3 == 0
    return (*plain_risk(wrong, p, target), Risk(wrong.astype(float), chosen, target))


def violations(draw, risks, draws, n, targets, confidence):
    """How often a chosen pair breaks a promise in truth, and the mean acceptance, per target."""
    generator = np.random.default_rng(11)
    p_all, v_all, wrong_all = draw(generator, 100_000)
    broken, accepted = np.zeros(len(targets)), np.zeros(len(targets))
    for _ in range(draws):
        p, v, wrong = draw(generator, n)
        pilot, tested = (
            ScoredExamples(p[part], v[part], risks(wrong[part], p[part], targets[0]))
            for part in (slice(n // 10), slice(n // 10, n))
        )
        strictness = declare_strictness(pilot)
        ranked = Ranked.by(strictness, tested)
        steps = choose_steps(ranked, pilot, tested, targets, confidence)
        for i, step in enumerate(steps):
            if step is None:
                continue
            tau_p, tau_v = strictness.thresholds(ranked.level_of(step))
            taken = (p_all >= tau_p) & (v_all <= tau_v)
            first, *others = risks(wrong_all, p_all, targets[i])
            limits = [(first, targets[i]), *((other, other.target) for other in others)]
            broken[i] += any(r.loss[taken & r.counted].mean() > limit for r, limit in limits)
            accepted[i] += taken.mean()
    return broken, accepted / draws


def margin(draws, rate):
    """Most violations that a true rate of `rate` gives in all but one of 1,000 cases."""
    return stats.binom.ppf(0.999, draws, rate)


@pytest.mark.parametrize("risks", [plain_risk, costly, with_a_class])
@pytest.mark.parametrize("draw", [world, wavy, flat, tied, repeated])
@pytest.mark.parametrize("n", [60, 200, 800])
def test_the_promise_is_kept(draw, risks, n):
    target = 0.0656 if risks is costly else 0.15  # 7/16 of 0.15: as much of a cost
    broken, _ = violations(draw, risks, 150, n, (target,), 0.8)
    assert broken[0] <= margin(150, 0.2)


def test_where_all_answers_are_just_not_good_enough_all_of_delta_is_spent():
    """The test is exact but for whole numbers of errors: it does not keep promises by shyness."""
    broken, _ = violations(flat, plain_risk, 1000, 200, (0.15,), 0.9)
    assert 0.05 * 1000 < broken[0] <= margin(1000, 0.1)


def test_the_promise_is_kept_in_1000_draws_and_by_choosing_well():
    broken, accepted = violations(world, plain_risk, 1000, 800, (0.15, 0.1), 0.9)
    assert (broken <= margin(1000, 0.1)).all()
    assert accepted[0] > 0.2
    assert accepted[1] < accepted[0]


def test_picking_on_the_same_data_would_break_the_promise():
    """The tests above can fail: choosing the most accepting pair without a test does."""
    generator = np.random.default_rng(3)
    p_all, _, wrong_all = world(generator, 200_000)
    broken = 0
    for _ in range(100):
        data = scored(*world(generator, 800))
        ranked = Ranked.by(Strictness(1.0), data)
        count, loss = ranked.totals(data.risks[0])
        step = int(count[loss / count <= 0.15][-1])
        broken += wrong_all[p_all >= ranked.level_of(step)].mean() > 0.15
    assert broken > margin(100, 0.1)


@pytest.mark.parametrize("binary", [True, False])
def test_p_values_are_valid_at_the_boundary(binary):
    """With the true mean at the target, p ≤ δ at most with probability δ, for random counts."""
    generator = np.random.default_rng(4)
    count = generator.binomial(400, 0.5, 20_000)
    if binary:
        total = generator.binomial(count, 0.1).astype(float)
    else:  # losses 0, 1/4 and 1 with mean 0.1
        dear = generator.binomial(count, 0.05)
        total = dear + 0.25 * generator.binomial(count - dear, 0.2 / 0.95)
    p_values = mean_p_value(total, count, 0.1, binary=binary)
    for delta in (0.01, 0.05, 0.2):
        assert (p_values <= delta).sum() <= margin(20_000, delta)
    if binary:
        assert (p_values <= 0.2).mean() > 0.13, "exact up to the steps of a whole number of errors"


@given(st.integers(0, 2**32 - 1), st.sampled_from([60, 300, 1000]))
@settings(max_examples=40, deadline=None)
def test_stricter_targets_never_accept_more(seed, n):
    p, v, wrong = world(np.random.default_rng(seed), n)
    pilot = scored(p[: n // 10], v[: n // 10], wrong[: n // 10])
    tested = scored(p[n // 10 :], v[n // 10 :], wrong[n // 10 :])
    ranked = Ranked.by(declare_strictness(pilot), tested)
    steps = choose_steps(ranked, pilot, tested, (0.3, 0.2, 0.15, 0.1, 0.05), 0.9)
    assert all(b is None or (a is not None and b <= a) for a, b in itertools.pairwise(steps))
