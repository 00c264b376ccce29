import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from training.risk_control import Risk, ScoredExamples
from training.threshold_path import declare_path, fallback, steps_accepting


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


def margin(draws, rate):
    """Most violations that a true rate of `rate` gives in all but one of 1,000 cases."""
    return stats.binom.ppf(0.999, draws, rate)


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
    floors, limits = map(np.array, zip(*map(path.thresholds, range(len(path))), strict=True))
    assert (np.diff(floors) <= 0).all()
    assert (np.diff(limits) >= 0).all()
    p, share, wrong = map(np.array, zip(*others, strict=True))
    data = scored(p, share * p * (1 - p), wrong)
    accepted = (data.probability >= floors[:, None]) & (data.variance <= limits[:, None])  # [S, n]
    count, loss = path.totals(data, data.risks[0])
    assert count.tolist() == accepted.sum(axis=1).tolist()
    assert loss.tolist() == (accepted & wrong).sum(axis=1).tolist()


def test_the_loosest_pair_accepts_all_that_the_pilot_has_seen():
    p, v, wrong = world(np.random.default_rng(1), 500)
    path = declare_path(scored(p, v, wrong))
    assert (path.first_step(p, v) < len(path)).all()
    assert path.first_step(p[:1] * 0.0, v[:1]).tolist() == [len(path)]
    assert path.first_step(p[:1], np.array([v.max() + 1e-6])).tolist() == [len(path)]


def test_testing_starts_where_a_share_of_each_risk_s_answers_is_accepted():
    p = np.linspace(1.0, 0.5, 100)
    path = declare_path(scored(p, 0.0 * p, 0.0 * p))
    data = scored(p, 0.0 * p, 0.0 * p)
    count, _ = path.totals(data, data.risks[0])
    starts = steps_accepting(path, data, (1 / 2, 1 / 3))
    assert [int(count[s]) for s in starts] == [34, 50]
    rare = Risk(0.0 * p, np.arange(100) >= 60, 0.1)
    [start] = steps_accepting(path, ScoredExamples(p, 0.0 * p, (*data.risks, rare)), (1 / 2,))
    assert int(count[start]) == 80
