"""The benchmark of the two kinds of doubt, on inputs and answers that were made up."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.doubt_measures import (
    CHOSEN,
    Doubt,
    Study,
    above,
    best_threshold,
    compared,
    decided,
    interval,
)
from benchmarks.doubt_section import drawn, section
from benchmarks.doubtful import JOINS, ambiguous, unknown
from dalorra.decision.policy import Policy
from tests.fakes import prediction

POLICY = Policy(min_probability=0.9, max_variance=0.01, source="made up for a test")
USUAL = [
    (f"Headline {i} of {label}. What item {i} says.", label) for i in range(9) for label in "ab"
]


@pytest.mark.parametrize("task", JOINS)
def test_an_ambiguous_text_is_made_of_two_labels(task):
    usual = [(f"Of {label}. By {label}", label) for label in "xyz"]
    for texts in ambiguous(task, usual, 20, 0).values():
        assert len(texts) == 20
        for text in texts:
            assert len(set(re.findall(r"\b[xyz]\b", text))) == 2


def test_the_order_of_the_labels_is_open():
    texts = ambiguous("sst2", USUAL, 40, 0)["a , but b"]
    assert {re.search(r" of (\w)", text)[1] for text in texts} == {"a", "b"}


@given(st.integers(0, 1_000))
def test_spoilt_words_keep_their_length_and_shuffled_ones_their_letters(seed):
    usual = ["The plot is thin , and so are the actors", "Who was Galileo ?"]
    made = unknown(usual, ["news"], ["Nie wieder"], 1, seed)
    assert (made["other domain"], made["other language"]) == (["news"], ["Nie wieder"])
    lengths = {tuple(map(len, text.split())) for text in usual}
    for kind in ("invented words", "shuffled letters"):
        assert tuple(map(len, made[kind][0].split())) in lengths
    shuffled = [Counter(word) for word in made["shuffled letters"][0].split()]
    assert shuffled in [[Counter(word) for word in text.split()] for text in usual]


def made_up(*, steady: bool) -> list[Doubt]:
    """Ambiguous inputs are familiar, and the samples disagree on them; one of each is accepted."""
    doubts = []
    for half in ("development", "test"):
        for i in range(10):
            for group, novelty, variance in (
                ("ambiguous", 0.6, 0.03),
                ("unknown", 0.2, 0.03 if steady else 0.01),
                ("usual", 0.9, 0.02),
            ):
                said = replace(
                    prediction(0.6, variance, novelty + i / 100), sample_probabilities=(0.5, 0.7)
                )
                doubts.append(Doubt(half, group, group, f"{i}", said))
            sure = replace(prediction(0.95, 0.0, 0.0), sample_probabilities=(0.95, 0.95))
            doubts.append(Doubt(half, "ambiguous", "ambiguous", "sure", sure))
    return doubts


def test_only_what_is_not_accepted_is_compared_and_each_measure_has_its_side():
    lines = {
        (line["measure"], line["half"]): line
        for line in compared([Study("task", POLICY, made_up(steady=False))])
    }
    novelty, variance = lines[CHOSEN, "test"], lines["variance v", "test"]
    assert novelty["n"] == {"ambiguous": 10, "unknown": 10, "usual": 10}
    assert (novelty["auroc"], novelty["ambiguous_side"]) == (1.0, "above")
    assert novelty["threshold"] == pytest.approx(0.6)
    assert novelty["clarified"] == {"ambiguous": 1.0, "unknown": 0.0, "usual": 1.0}
    assert variance["auroc"] == 1.0
    assert lines["probability p", "test"]["auroc"] == 0.5  # all the same


def test_one_threshold_serves_adapters_of_the_same_weight():
    many = (np.full(1000, 0.9), np.full(1000, 0.1))
    few = (np.full(2, 0.5), np.full(2, 0.2))
    assert best_threshold([many, few]) == 0.5


def test_decisions_are_those_of_the_policy():
    lines = decided([Study("task", POLICY, made_up(steady=True))])
    found = next(line for line in lines if line["group"] == "ambiguous" and line["half"] == "test")
    assert (found["n"], found["accept"]) == (20, 0.5)
    assert found["accept"] + found["escalate"] + found["clarify"] == pytest.approx(1.0)


def test_a_study_is_kept_whole(tmp_path):
    study = Study("task", POLICY, made_up(steady=False))
    study.save(tmp_path / "kept" / "task.json")
    found = Study.read(tmp_path / "kept" / "task.json")
    assert compared([found]) == compared([study])
    assert decided([found]) == decided([study])


def test_the_section_and_the_figure_show_the_test_half():
    studies = [Study(task, POLICY, made_up(steady=False)) for task in ("sst2", "trec")]
    measured = compared(studies)
    text = section([*measured, *decided(studies)])
    assert f"| {CHOSEN} | 1.00 (1.00–1.00) | 1.00 (1.00–1.00) |" in text
    assert "sst2 10, 10 and 10; trec 10, 10 and 10" in text
    assert len(drawn(studies, measured).axes) == 2


def test_the_interval_holds_the_area_and_narrows_with_more_inputs():
    rng = np.random.default_rng(1)
    widths = []
    for n in (20, 500):
        pair = rng.normal(1.0, 1.0, n), rng.normal(0.0, 1.0, n)
        low, high = interval(*pair)
        assert low < above(*pair) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3
