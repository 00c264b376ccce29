"""Rows of inputs that are not tokenised yet."""

import gc
import weakref

import pytest

from dalorra.questions import Asked, Option, Question
from service.engine.lengths import Lengths, Size, sizes_of
from tests.fakes import FakePredictor, FakeQuestions

PREDICTOR = FakePredictor()
SAMPLES = 10


def choice(instructions: str, *names: str) -> Question:
    return Question("choice", instructions, tuple(map(Option, names)))


def learnt(*seen: tuple[int, int], lengths: Lengths | None = None) -> Lengths:
    """From inputs of so many characters and rows."""
    lengths = lengths or Lengths()
    for characters, rows in seen:
        lengths.learn(PREDICTOR, Size(characters), rows, cut=False)
    return lengths


def test_rows_lie_on_a_line_that_ends_at_the_longest_input():
    lengths = learnt(*((n, 50 + n // 4) for n in range(0, 40_000, 400)))

    assert lengths.rows(PREDICTOR, Size(200)) == pytest.approx(100, abs=5)
    assert lengths.rows(PREDICTOR, Size(0)) == pytest.approx(50, abs=5)
    assert lengths.rows(PREDICTOR, Size(1_000_000)) == 50 + 39_600 // 4


def test_where_an_input_was_cut_nothing_is_longer():
    lengths = learnt(*((n, 50 + n // 4) for n in range(0, 1_200, 10)))

    lengths.learn(PREDICTOR, Size(100_000), 350, cut=True)

    assert lengths.rows(PREDICTOR, Size(1_000_000)) == 350
    assert lengths.rows(PREDICTOR, Size(200)) == pytest.approx(100, abs=5)


def test_before_anything_is_known_a_length_counts_for_something():
    assert Lengths().rows(PREDICTOR, Size(400)) == 160


def test_one_input_is_enough_to_know_its_like():
    lengths = learnt((800, 2_000))

    assert lengths.rows(PREDICTOR, Size(800)) == pytest.approx(2_000, rel=0.1)


def test_the_estimate_follows_what_comes():
    lengths = learnt(*[(100, 1_000)] * 300, *[(100, 50)] * 300)

    assert lengths.rows(PREDICTOR, Size(100)) == pytest.approx(50, abs=5)


def test_each_predictor_has_lengths_of_its_own_as_long_as_it_lives():
    other = FakePredictor()
    lengths = learnt(*[(100, 1_000)] * 20)
    lengths.learn(other, Size(100), 50, cut=False)

    assert lengths.rows(PREDICTOR, Size(100)) > 900
    gone = weakref.ref(other)
    del other
    gc.collect()
    assert gone() is None


def test_questions_about_one_state_have_equal_parts_of_it():
    state, other = "s" * 1_000, "o" * 500
    short, long = choice("Which?", "a", "bc"), choice("Which of them?", "some", "others")
    asked = [
        (PREDICTOR, Asked(state, short)),
        (PREDICTOR, Asked(state, long)),
        (FakeQuestions(), Asked(state, short)),
        (PREDICTOR, Asked(other, short)),
    ]

    assert sizes_of(asked) == [
        Size(500 + 6 + 3, 3),
        Size(500 + 14 + 10, 10),
        Size(1_000 + 6 + 3, 3),
        Size(500 + 6 + 3, 3),
    ]


def test_a_mapping_is_as_long_as_its_texts():
    assert sizes_of([(PREDICTOR, {"premise": "abc", "claim": "de"})]) == [Size(5)]


@pytest.mark.parametrize("read_off", ["texts", "codes"])
def test_rows_of_questions_are_told_from_what_they_read_and_what_can_be_chosen(read_off: str):
    def rows(size: Size) -> float:
        tails = size.options / 4 if read_off == "texts" else 2
        return 20 + size.characters / 4 + SAMPLES * (3 + tails)

    lengths = Lengths()
    sizes = [
        Size((n * 37) % 3_000 + options, options)
        for n, options in enumerate([4, 8, 40, 300, 4, 90] * 20)
    ]
    for size in sizes:
        lengths.learn(PREDICTOR, size, round(rows(size)), cut=False)

    for size in (Size(2_000, 12), Size(60, 8), Size(700, 600)):
        assert lengths.rows(PREDICTOR, size) == pytest.approx(rows(size), rel=0.1)
