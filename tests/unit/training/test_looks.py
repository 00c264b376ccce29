import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dalorra.decision.policy import Policy
from dalorra.errors import AdapterError, ConfigError
from training.looks import LOOKS_FILE, Looks, look_at, look_at_feedback, take_look
from training.promise import Promise
from training.risk_control import mean_p_value
from training.tasks import Example


def examples(numbers, label="yes"):
    return [Example({"text": f"input {i}"}, label) for i in numbers]


def look(numbers, *, confidence=0.95, digest="d" * 64, label="yes", **settings):
    promise = Promise(0.05, confidence)
    return look_at(examples(numbers, label), digest, promise, settings, "tickets test")


def policy(confidence=0.95):
    return Policy.never("d" * 64, "tickets test: thresholds").model_copy(
        update={"confidence": confidence, "target_error": 0.05}
    )


def take(folder, one, *, again=False):
    found = take_look(folder, one, lambda: policy(1.0 - one.spent), again=again)
    return found.confidence


def refuses(folder, one, message="use new examples", **options):
    before = (folder / LOOKS_FILE).read_bytes()
    with pytest.raises(ConfigError, match=message):
        take_look(folder, one, lambda: pytest.fail("it calibrates"), **({"again": False} | options))
    assert (folder / LOOKS_FILE).read_bytes() == before


def test_the_same_look_is_free_and_in_any_order(tmp_path):
    assert take(tmp_path, look(range(100))) == 0.95
    assert take(tmp_path, look(range(99, -1, -1))) == 0.95
    assert len(Looks.load(tmp_path).looks) == 1


@pytest.mark.parametrize(
    "second",
    [
        look(range(100), temperature="on"),
        look(range(100), confidence=0.9),
        look(range(100), label="no"),
        look(range(50)),
        look(range(99, 150)),
    ],
    ids=["settings", "confidence", "labels", "a part", "one shared input"],
)
def test_another_look_at_shared_inputs_is_refused_or_paid_for(tmp_path, second):
    take(tmp_path, look(range(100)))
    refuses(tmp_path, second)
    left = 1.0 - 0.05 - second.spent
    assert take(tmp_path, second, again=True) == pytest.approx(left)
    assert len(Looks.load(tmp_path).looks) == 2


def test_the_refusal_says_what_would_be_right(tmp_path):
    take(tmp_path, look(range(100)))
    refuses(
        tmp_path,
        look(range(90, 110)),
        r"10 of these 20 inputs were tested on before.*\(tickets test, 2.*: use new examples, or "
        "pay with --look-again, which leaves a confidence of 0.9$",
    )


def test_new_inputs_and_other_adapters_are_free(tmp_path):
    take(tmp_path, look(range(100)))
    assert take(tmp_path, look(range(100, 200), temperature="on")) == 0.95
    assert take(tmp_path, look(range(100), digest="e" * 64, temperature="on")) == 0.95


def test_all_looks_are_paid_whichever_is_the_last(tmp_path):
    first = look(range(100))
    take(tmp_path, first)
    assert take(tmp_path, look(range(50, 150)), again=True) == 0.9
    assert take(tmp_path, look(range(120), temperature="on"), again=True) == 0.85
    assert take(tmp_path, first) == 0.85, "going back is a choice among three"
    assert take(tmp_path, look(range(130, 140)), again=True) == 0.9, "it shares with one"


def test_the_policy_says_what_was_paid(tmp_path):
    take(tmp_path, look(range(100)))
    second = look(range(100), confidence=0.99)
    paid = take_look(tmp_path, second, lambda: policy(0.99), again=True)
    assert paid.confidence == 0.94
    assert paid.source.endswith("inputs were looked at before: confidence 1 − 0.05 − 0.01")


def test_nothing_can_be_paid_with_what_is_not_left(tmp_path):
    take(tmp_path, look(range(100), confidence=0.5))
    for again in (False, True):
        second = look(range(100), confidence=0.4)
        refuses(tmp_path, second, "a higher --confidence from the first look", again=again)


def test_a_look_that_another_process_takes_meanwhile_counts(tmp_path):
    def meanwhile():
        take(tmp_path, look(range(100)))
        return policy()

    with pytest.raises(ConfigError, match="were tested on before"):
        take_look(tmp_path, look(range(100), temperature="on"), meanwhile, again=False)


def test_a_calibration_that_fails_is_no_look(tmp_path):
    with pytest.raises(ZeroDivisionError):
        take_look(tmp_path, look(range(100)), lambda: 1 // 0, again=False)
    assert take(tmp_path, look(range(100), temperature="on")) == 0.95


def test_no_input_can_be_read_back(tmp_path):
    take(tmp_path, look(range(100)))
    kept = (tmp_path / LOOKS_FILE).read_text()
    assert "input 1" not in kept
    assert {len(one) for one in json.loads(kept)["looks"][0]["inputs"]} == {12}


@pytest.mark.parametrize("content", ["", "{", '{"looks": [{}]}', '{"looks": [], "more": 1}'])
def test_damaged_looks_are_refused(tmp_path, content):
    (tmp_path / LOOKS_FILE).write_text(content)
    with pytest.raises(AdapterError, match=r"looks\.json is not valid: .*restore it, or delete"):
        take(tmp_path, look(range(100)))
    assert (tmp_path / LOOKS_FILE).read_text() == content


def test_looks_that_cannot_be_kept_are_not_taken(tmp_path):
    with pytest.raises(AdapterError, match=r"nowhere/looks\.json cannot be written"):
        take(tmp_path / "nowhere", look(range(100)))


# --- feedback: the same test at a later moment ---


class Judged:
    def __init__(self, name):
        self.request_id = name


def feedback(numbers, **settings):
    answers = [Judged(f"r{i}") for i in numbers]
    return look_at_feedback(answers, "d" * 64, Promise(0.05), settings)


def test_feedback_may_be_looked_at_again_when_there_is_more_of_it(tmp_path):
    for n in (100, 150, 150, 400):
        assert take(tmp_path, feedback(range(n))) == 0.95
    assert len(Looks.load(tmp_path).looks) == 1


def test_feedback_that_has_lost_its_beginning_is_another_test(tmp_path):
    take(tmp_path, feedback(range(100)))
    refuses(tmp_path, feedback(range(50, 300)))
    refuses(tmp_path, feedback(range(100), novelty_level=0.05))
    assert take(tmp_path, feedback(range(100, 200))) == 0.95


# --- what it is all for ---


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.data())
def test_no_confidence_exceeds_what_is_left_of_shared_inputs(settings, data):
    looks, taken = Looks(), []
    for setting in settings:
        start = data.draw(st.integers(0, 30))
        one = look(range(start, start + 20), setting=setting)
        left = looks.confidence(one, again=True)
        looks = looks.after(one)
        taken.append((start, setting))
        sharing = {(s, k) for s, k in taken if abs(s - start) < 20}
        assert left == pytest.approx(1.0 - 0.05 * len(sharing))


@pytest.mark.parametrize(("confidence", "promised"), [(0.95, 0.7), (1 - 0.05 / 6, 0.95)])
def test_the_best_of_six_looks_keeps_what_was_paid_for(confidence, promised):
    # Each look tests a half of its own of the same examples, whose risk is the target itself.
    n, runs, target, broken = 400, 1000, 0.1, 0
    generator = np.random.default_rng(3)
    halves = generator.random((6, n)) < 0.5
    looks = Looks()
    for k in range(6):
        one = look(range(n), confidence=confidence, half=k)
        left = looks.confidence(one, again=True)
        looks = looks.after(one)
    assert left == pytest.approx(promised)
    for _ in range(runs):
        wrong = generator.random(n) < target
        p_values = mean_p_value((halves & wrong).sum(axis=1), halves.sum(axis=1), target)
        broken += bool(p_values.min() <= 1.0 - confidence)
    assert broken <= stats.binom.isf(1e-3, runs, 1.0 - promised)
    if promised < 0.9:
        assert broken > stats.binom.isf(1e-3, runs, 0.05), "or there was nothing to pay for"
