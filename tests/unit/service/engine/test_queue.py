"""Which entries go together, and that none is left behind."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalorra.prompts import Prompt
from service.engine.entry import Entry
from service.engine.lengths import Size
from service.engine.pace import Speed
from service.engine.queue import Queue
from tests.fakes import CUE, FakePredictor

UNKNOWN = Speed(per_row=0.0, price=0.0, batch_rows=math.inf)


def entry(
    name: object,
    rows: int,
    predictor: FakePredictor,
    *,
    client: str | None = None,
    deadline: float = math.inf,
) -> Entry:
    one = Entry(
        key=name, predictor=predictor, value=str(name), rows=rows, size=Size(rows), client=client
    )
    one.deadline, one.own_rows = deadline, rows
    return one


def queue_of(*rows: int, budget: int, pads: bool = False) -> Queue:
    """Entries of one predictor, the oldest first, with these rows."""
    predictor, queue = FakePredictor(batch_rows=budget), Queue()
    predictor.batching = replace(predictor.batching, pads=pads)
    for name, count in enumerate(rows):
        queue.push(entry(name, count, predictor))
    return queue


def rows_of_batches(queue: Queue) -> list[list[int]]:
    """Rows of the entries of each batch, until nothing waits any more."""
    return [[one.rows for one in batch] for batch in iter(lambda: queue.take(0.0, UNKNOWN), [])]


def test_takes_the_oldest_with_its_nearest_in_length_the_oldest_first():
    queue = queue_of(50, 400, 52, 390, 48, 47, budget=150)

    assert rows_of_batches(queue) == [[50, 52, 48], [400], [390], [47]]


def test_a_batch_is_of_one_predictor_and_each_takes_its_turn():
    alice, bob, queue = FakePredictor(), FakePredictor(), Queue()
    for number, (rows, whose) in enumerate([(50, alice), (50, bob), (51, alice), (49, bob)]):
        queue.push(entry(number, rows, whose))

    batches = [queue.take(0.0, UNKNOWN) for _ in range(3)]

    assert [[(one.predictor, one.rows) for one in batch] for batch in batches] == [
        [(alice, 50), (alice, 51)],
        [(bob, 50), (bob, 49)],
        [],
    ]


def test_padding_counts_against_the_budget_where_the_network_pads():
    assert rows_of_batches(queue_of(60, 50, 50, budget=160)) == [[60, 50, 50]]
    assert rows_of_batches(queue_of(60, 50, 50, budget=160, pads=True)) == [[60, 50], [50]]


def test_an_entry_over_the_budget_goes_alone():
    assert rows_of_batches(queue_of(5_000, 10, budget=100)) == [[5_000], [10]]


def test_an_entry_can_leave_from_the_middle():
    predictor, queue = FakePredictor(), Queue()
    first, gone, last = (entry(name, 10, predictor) for name in ("first", "gone", "last"))
    for one in (first, gone, last):
        queue.push(one)

    queue.discard(gone)
    queue.discard(gone)

    assert queue.take(0.0, UNKNOWN) == [first, last]


def test_clients_take_turns_by_rows_and_their_own_entries_as_they_came():
    predictor, queue = FakePredictor(batch_rows=10), Queue()
    for client, rows in [("a", 10)] * 4 + [("b", 10)] * 2 + [("c", 30)]:
        queue.push(entry(len(queue), rows, predictor, client=client))

    order = [one.key for _ in range(7) for one in queue.take(0.0, UNKNOWN)]

    assert order == [0, 4, 1, 5, 2, 6, 3]


def test_who_comes_back_after_a_pause_has_no_turns_saved_up():
    predictor, queue = FakePredictor(batch_rows=10), Queue()
    for number in range(6):
        queue.push(entry(f"a{number}", 10, predictor, client="a"))
    for _ in range(3):
        queue.take(0.0, UNKNOWN)
    for number in range(3):
        queue.push(entry(f"b{number}", 10, predictor, client="b"))

    order = [one.key for _ in range(6) for one in queue.take(0.0, UNKNOWN)]

    assert order == ["a3", "b0", "a4", "b1", "a5", "b2"]


SPEED = Speed(per_row=0.1, price=0.0, batch_rows=100)  # a full batch takes 10 s


def test_who_has_no_time_to_wait_for_another_batch_goes_before_its_turn():
    predictor, queue = FakePredictor(batch_rows=100), Queue()
    for number in range(20):
        queue.push(entry(number, 50, predictor, deadline=200 + number))
    hurried = entry("hurried", 90, predictor, client="new", deadline=19)
    queue.push(hurried)

    assert hurried in queue.take(0.0, SPEED)


@pytest.mark.parametrize(("deadline", "at_once"), [(22, True), (23, False)])
def test_plans_leave_a_tenth_of_the_time_to_be_wrong_by(deadline: float, at_once: bool):
    predictor, queue = FakePredictor(batch_rows=100), Queue()
    for number in range(20):
        queue.push(entry(number, 50, predictor, deadline=200 + number))
    hurried = entry("hurried", 90, predictor, client="new", deadline=deadline)
    queue.push(hurried)

    # In the batch after this one it would be answered at 20.
    assert (hurried in queue.take(0.0, SPEED)) is at_once


def test_who_would_be_late_even_in_a_small_batch_does_not_spoil_a_full_one():
    predictor, queue = FakePredictor(batch_rows=100), Queue()
    for number in range(4):
        queue.push(entry(number, 20, predictor, deadline=2.4))
        queue.push(entry(10 + number, 50, predictor, deadline=35))

    assert [one.key for one in queue.take(0.0, SPEED)] == [10, 11]
    assert [one.key for one in queue.take(10.0, SPEED)] == [12, 13]


def test_where_all_are_in_a_hurry_the_batch_is_as_small_as_that():
    predictor, queue = FakePredictor(batch_rows=100), Queue()
    for number in range(4):
        queue.push(entry(number, 25, predictor, deadline=5.5))

    assert [one.key for one in queue.take(0.0, SPEED)] == [0, 1]


def test_those_who_cannot_be_answered_in_time_are_found_and_only_those():
    predictor, queue = FakePredictor(batch_rows=100), Queue()
    for number, deadline in enumerate([20, 11, 4, 16]):
        queue.push(entry(number, 50, predictor, deadline=deadline))

    assert [one.key for one in queue.hopeless(0.0, SPEED)] == [2]
    assert [one.key for one in queue.hopeless(7.0, SPEED)] == [2, 1]
    assert [one.key for one in queue.hopeless(0.0, UNKNOWN)] == []


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 120), st.floats(0, 200), st.sampled_from("abc")), max_size=40)
)
def test_whoever_can_be_in_time_in_order_of_deadlines_is_in_time_whatever_is_preferred(
    arrivals: list[tuple[int, float, str]],
):
    predictor, queue = FakePredictor(batch_rows=100), Queue()
    now, batches, ahead = 0.0, 1, 0
    deadlines: dict[Entry, float] = {}
    for number, (rows, patience, client) in enumerate(arrivals):
        # In batches of their own order: of those that do not fit together, one goes alone.
        batches, ahead = (batches, ahead + rows) if ahead + rows <= 100 else (batches + 1, rows)
        deadline = batches * 12.0 + patience
        one = entry(number, rows, predictor, client=client, deadline=deadline)
        deadlines[one] = deadline
        queue.push(one)

    while batch := queue.take(now, SPEED):
        now += sum(one.rows for one in batch) * SPEED.per_row
        for one in batch:
            # The order of deadlines is that of arrival but for patience, which only adds.
            assert now <= deadlines.pop(one) + 2 * 12.0
    assert not deadlines


@given(
    st.lists(
        st.one_of(st.tuples(st.integers(1, 500), st.integers(0, 1)), st.just("take")), max_size=200
    ),
    st.integers(1, 1_000),
    st.booleans(),
)
def test_nothing_is_lost_repeated_or_starved(
    steps: list[tuple[int, int] | str], budget: int, pads: bool
):
    predictors = FakePredictor(batch_rows=budget), FakePredictor(batch_rows=budget)
    for predictor in predictors:
        predictor.batching = replace(predictor.batching, pads=pads)
    queue = Queue()
    others_ahead: dict[Entry, int] = {}
    taken: list[Entry] = []
    pushed: list[Entry] = []

    def take() -> None:
        batch = queue.take(0.0, UNKNOWN)
        taken.extend(batch)
        rows = [one.rows for one in batch]
        if len(batch) > 1:
            assert (max(rows) * len(rows) if pads else sum(rows)) <= budget
        assert len({one.predictor for one in batch}) <= 1
        assert batch[:1] == list(others_ahead)[:1], "the oldest of all is part of it"
        assert batch == [one for one in others_ahead if one in batch], "the oldest first"
        for one in batch:
            del others_ahead[one]
        # Each batch brings everyone that still waits closer to the front by at least one.
        for one, ahead in others_ahead.items():
            assert ahead > 0
            others_ahead[one] = ahead - 1

    for step in steps:
        if isinstance(step, tuple):
            rows, whose = step
            one = entry(len(pushed), rows, predictors[whose])
            others_ahead[one] = len(queue)
            pushed.append(one)
            queue.push(one)
        else:
            take()
    while len(queue):
        take()

    assert sorted(taken, key=lambda one: int(str(one.key))) == pushed


def question(name: object, state: str, predictor: FakePredictor) -> Entry:
    """A question of twelve tokens, with 10 tails of two."""
    one = entry(name, 0, predictor)
    ids = (*map(ord, state), *range(12))
    one.prompt = Prompt(ids, CUE, shared=len(state), options=("true", "false"))
    one.state = predictor.state_of(one.prompt)
    one.own_rows = predictor.packed_rows(one.prompt) - one.state.rows
    return one


def test_questions_about_one_state_go_together_whoever_asked_and_their_state_counts_once():
    predictor, queue = FakePredictor(batch_rows=200), Queue()
    for number, state in enumerate(["a" * 80, "b" * 80, "a" * 80, "b" * 80, "a" * 80]):
        queue.push(question(number, state, predictor))

    batches = iter(lambda: queue.take(0.0, UNKNOWN), [])
    assert [[one.key for one in batch] for batch in batches] == [[0, 2, 4], [1, 3]]
