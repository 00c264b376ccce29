import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapie.risk_control import BinaryClassificationController
from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value
from scipy import stats

from training.risk_control import (
    Risk,
    ScoredExamples,
    ThresholdPath,
    choose_steps,
    declare_path,
    declare_starts,
    fallback,
    mean_p_value,
    path_p_values,
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


def test_from_one_start_a_sequence_ends_at_the_first_that_is_kept():
    p = np.array([0.5, 0.01, 0.05, 0.2, 0.001])
    found = [fallback(p, (start,), 0.05).tolist() for start in range(5)]
    assert found == [[], [1, 2], [2], [], [4]]


def test_a_second_start_has_its_own_part_and_what_was_handed_on():
    # Parts of 0.025; handed on from the first, the second start has 0.05.
    assert fallback(np.array([0.02, 0.02, 0.04, 0.04]), (0, 2), 0.05).tolist() == [0, 1, 2, 3]
    assert fallback(np.array([0.02, 0.03, 0.04, 0.04]), (0, 2), 0.05).tolist() == [0]
    assert fallback(np.array([0.03, 0.00, 0.02, 0.04]), (0, 2), 0.05).tolist() == [2]


@pytest.mark.parametrize("bad", [(0,), (3,), (0, 2), (1, 3, 4), (2, 3)])
def test_false_rejections_are_as_rare_as_promised_whichever_pairs_are_bad(bad):
    generator = np.random.default_rng(7)
    false = 0
    for _ in range(4000):
        p = np.full(5, 1e-9)
        p[list(bad)] = generator.random(len(bad))
        false += bool(set(fallback(p, (0, 2), 0.1).tolist()) & set(bad))
    assert false <= margin(4000, 0.1)


path_inputs = st.lists(
    st.tuples(st.floats(0.2, 1.0), st.floats(0.0, 1.0), st.booleans()), min_size=1, max_size=40
)


@given(path_inputs, path_inputs)
@settings(deadline=None)
def test_a_path_is_nested_and_a_step_accepts_as_its_thresholds_do(pilot, others):
    p, share, wrong = map(np.array, zip(*pilot, strict=True))
    path = declare_path(scored(p, share * p * (1 - p), wrong))
    assert (np.diff(path.min_probability) <= 0).all()
    assert (np.diff(path.max_variance) >= 0).all()
    p, share, wrong = map(np.array, zip(*others, strict=True))
    data = scored(p, share * p * (1 - p), wrong)
    accepted = (data.probability >= path.min_probability[:, None]) & (
        data.variance <= path.max_variance[:, None]
    )  # [S, n]
    count, loss = path.totals(data, data.risks[0])
    assert count.tolist() == accepted.sum(axis=1).tolist()
    assert loss.tolist() == (accepted & wrong).sum(axis=1).tolist()


def test_the_loosest_pair_accepts_all_that_the_pilot_has_seen_and_no_more_variance():
    p, v, wrong = world(np.random.default_rng(1), 500)
    path = declare_path(scored(p, v, wrong))
    assert (path.min_probability[-1], path.max_variance[-1]) == (p.min(), v.max())


def test_the_path_uses_a_variance_that_tells_and_ignores_one_that_does_not():
    generator = np.random.default_rng(2)
    p = generator.uniform(0.6, 0.99, 4000)
    share = generator.uniform(0.0, 0.5, 4000)
    wrong = generator.random(4000) < np.where(share > 0.3, 0.5, 0.02)
    telling = declare_path(scored(p, share * p * (1 - p), wrong))
    middle = len(telling) // 3
    spread = telling.min_probability[middle] * (1 - telling.min_probability[middle])
    assert 0.2 < telling.max_variance[middle] / spread < 0.32
    wrong = generator.random(4000) > p
    silent = declare_path(scored(p, share * p * (1 - p), wrong))
    spread = silent.min_probability[middle] * (1 - silent.min_probability[middle])
    assert silent.max_variance[middle] / spread > 0.38


@pytest.mark.filterwarnings("ignore")  # MAPIE says that it is new
@pytest.mark.parametrize("seed", range(8))
def test_one_threshold_agrees_with_mapie(seed):
    p, _, wrong = world(np.random.default_rng(seed), 1500)
    levels = np.linspace(0.97, 0.5, 48)
    path = ThresholdPath(levels, np.ones(48))
    data = scored(p, np.zeros(1500), wrong, target=0.15)
    p_values = path_p_values(path, data)
    last = max(fallback(p_values, (0,), 0.1), default=-1)
    oracle = BinaryClassificationController(
        lambda x: np.column_stack([1 - x[:, 0], x[:, 0]]),
        risk="precision",
        target_level=0.85,
        confidence_level=0.9,
        list_predict_params=levels,
        fwer_method="fixed_sequence",
    ).calibrate(p[:, None], (~wrong).astype(int))
    theirs = np.asarray(oracle.p_values).ravel()
    count, errors = path.totals(data, data.risks[0])
    # MAPIE multiplies its error rate by n again and rounds up: by chance one error too many.
    one_more = mean_p_value(np.minimum(errors + 1, count), count, 0.15)
    same = np.isclose(theirs, p_values)
    assert (same | np.isclose(theirs, one_more)).all()
    assert same.mean() > 0.4
    assert 0 < last < 47
    assert (
        len(oracle.valid_predict_params) - 1 == max(fallback(theirs, (0,), 0.1), default=-1) <= last
    )
    if same[: last + 2].all():
        assert oracle.valid_predict_params.tolist() == levels[: last + 1].tolist()


def violations(draws, n, target, confidence, *, targets=()):
    """How often the chosen pair's true risk exceeds each target, and the mean acceptance."""
    generator = np.random.default_rng(11)
    p_all, v_all, wrong_all = world(generator, 400_000)
    wanted = [target, *targets]
    broken, accepted = np.zeros(len(wanted)), np.zeros(len(wanted))
    for _ in range(draws):
        p, v, wrong = world(generator, n)
        cut = n // 10
        pilot = scored(p[:cut], v[:cut], wrong[:cut])
        tested = scored(p[cut:], v[cut:], wrong[cut:])
        path = declare_path(pilot)
        steps = choose_steps(path, pilot, tested, wanted, confidence)
        for i, step in enumerate(steps):
            if step is not None:
                taken = (p_all >= path.min_probability[step]) & (v_all <= path.max_variance[step])
                broken[i] += wrong_all[taken].mean() > wanted[i]
                accepted[i] += taken.mean()
    return broken, accepted / draws


def margin(draws, rate):
    """Most violations that a true rate of `rate` gives in all but one of 1,000 cases."""
    return stats.binom.ppf(0.999, draws, rate)


def test_the_promise_is_kept_in_1000_draws():
    broken, accepted = violations(1000, 800, 0.15, 0.9, targets=(0.1,))
    assert (broken <= margin(1000, 0.1)).all()
    assert accepted[0] > 0.2, "it keeps it by choosing well, not by accepting nothing"
    assert accepted[1] < accepted[0]


def test_picking_on_the_same_data_would_break_the_promise():
    """The test above can fail: choosing the most accepting pair without a test does."""
    generator = np.random.default_rng(3)
    p_all, v_all, wrong_all = world(generator, 200_000)
    broken = 0
    for _ in range(100):
        p, v, wrong = world(generator, 800)
        data = scored(p, v, wrong)
        path = declare_path(data)
        count, loss = path.totals(data, data.risks[0])
        step = int(np.flatnonzero(loss / np.maximum(count, 1) <= 0.15)[-1])
        taken = (p_all >= path.min_probability[step]) & (v_all <= path.max_variance[step])
        broken += wrong_all[taken].mean() > 0.15
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
    targets = (0.3, 0.2, 0.15, 0.1, 0.05)
    steps = choose_steps(declare_path(pilot), pilot, tested, targets, 0.9)
    assert all(b is None or (a is not None and b <= a) for a, b in itertools.pairwise(steps))


def test_testing_starts_where_enough_is_expected_to_be_accepted():
    p = np.linspace(0.505, 1.0, 100)
    pilot = scored(p, np.zeros(100), np.zeros(100), target=0.05)
    path = declare_path(pilot)
    accepted = path.totals(pilot, pilot.risks[0])[0]  # of 100

    def shares(tested, *risks):
        data = replace(pilot, risks=(*pilot.risks, *risks))
        return [accepted[s] / 100 * tested for s in declare_starts(path, data, tested, 0.95)]

    # 59 without an error, 93 with one, 124 with two, 181 with four. A third of 400 is 133, half
    # of it 200. Steps are 2 % apart.
    low, high = shares(400)
    assert 124 <= low < 124 + 0.02 * 400 + 1
    assert 181 <= high < 181 + 0.02 * 400 + 1
    low, high = shares(200)
    assert 59 <= low < 59 + 0.02 * 200 + 1
    assert 93 <= high < 93 + 0.02 * 200 + 1
    # More are enough of a large set for six errors, 234: then there is one start.
    (only,) = shares(5000)
    assert 234 <= only < 234 + 0.02 * 5000 + 1
    assert shares(40) == [40], "too few for any verdict: the loosest"
    # A label of every other answer needs twice as many.
    every_other = Risk(np.zeros(100), np.arange(100) % 2 == 0, 0.05)
    low, high = shares(600, every_other)
    assert 2 * 93 <= low < 2 * 93 + 0.04 * 600 + 1
    assert 2 * 124 <= high < 2 * 124 + 0.04 * 600 + 1
