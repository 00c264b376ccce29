import pytest

from dalorra.decision.eprocess import EProcess
from dalorra.decision.policy import Policy
from dalorra.decision.promise_watch import PromiseWatch, false_accept_cost

LABELS = ("no", "perhaps", "yes")


def policy(**changes):
    promised = {
        "min_probability": 0.8,
        "max_variance": 0.02,
        "source": "a test",
        "target_error": 0.05,
        "confidence": 0.95,
    }
    return Policy(**{**promised, **changes})


def watched(policy, *seen):
    watch = PromiseWatch.of(policy, LABELS)
    for predicted, true in seen:
        watch = watch.observe(predicted, true)
    return watch


@pytest.mark.parametrize(
    ("true", "predicted", "cost"),
    [("yes", "yes", 0.0), ("no", "yes", 7.0), ("perhaps", "yes", 5.0), ("yes", "no", 1.0)],
)
def test_a_pair_wins_over_a_label_and_others_cost_one(true, predicted, cost):
    assert false_accept_cost({"no:yes": 7.0, "yes": 5.0}, LABELS, true, predicted) == cost


def test_a_name_that_is_a_label_is_that_label():
    labels = ("a", "a:b", "b")
    assert false_accept_cost({"a:b": 3.0}, labels, "a", "b") == 1.0
    assert false_accept_cost({"a:b": 3.0}, labels, "b", "a:b") == 3.0


def test_it_bets_on_the_errors_among_the_accepted():
    watch = watched(policy(), ("yes", "yes"), ("yes", "no"), ("no", "no"))
    assert watch.e_value == EProcess.after(0.05, [0.0, 1.0, 0.0]).e_value


def test_what_has_been_broken_stays_broken():
    watch = watched(policy(), *[("yes", "no")] * 4)
    assert watch.e_value == watch.peak > 20
    assert watch.broken(0.05)
    later = watch
    for _ in range(300):
        later = later.observe("yes", "yes")
    assert later.e_value < 20 < later.peak == watch.peak
    assert later.broken(0.05)
    assert not later.broken(0.5 / later.peak)


def test_costs_are_in_units_of_the_largest():
    costs = policy(target_error=0.1, costs={"yes": 4.0})
    watch = watched(costs, ("yes", "no"), ("no", "yes"), ("yes", "yes"))
    assert watch.e_value == EProcess.after(0.1 / 4, [1.0, 0.25, 0.0]).e_value


def test_a_class_target_is_watched_beside_the_whole():
    watch = watched(policy(class_targets={"yes": 0.02}), ("yes", "no"), ("no", "yes"))
    whole = EProcess.after(0.05, [1.0, 1.0]).e_value
    only_yes = EProcess.after(0.02, [1.0]).e_value
    assert watch.e_value == pytest.approx((whole + only_yes) / 2)


@pytest.mark.parametrize("changes", [{}, {"class_targets": {"no": 0.1, "yes": 0.02}}])
def test_it_goes_on_from_what_it_wrote(changes):
    watch = watched(policy(**changes), ("yes", "no"), ("no", "no"), ("no", "yes"))
    assert PromiseWatch.of(policy(**changes), LABELS).restored(watch.dump()) == watch


@pytest.mark.parametrize("dumped", ["", "[]", "{}", '{"peak": 1, "processes": []}'])
def test_a_state_of_something_else_is_refused(dumped):
    with pytest.raises(ValueError, match=r"."):
        PromiseWatch.of(policy(), LABELS).restored(dumped)


@pytest.mark.parametrize(
    "without",
    [
        {"confidence": None},
        {"target_error": None, "confidence": None},
        {"min_probability": 2.0},
        {"target_error": 1.0},
    ],
)
def test_nothing_is_watched_where_nothing_is_promised(without):
    assert PromiseWatch.of(policy(**without), LABELS) is None
