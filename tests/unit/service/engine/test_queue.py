"""Which entries go together, and that none is left behind."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from dalorra.prompts import Prompt
from service.engine.entry import Entry
from service.engine.queue import Queue
from tests.fakes import CUE, FakePredictor


def entry(name: object, rows: int, predictor: FakePredictor) -> Entry:
    return Entry(key=name, predictor=predictor, value=str(name), rows=rows)


def queue_of(*rows: int, budget: int, pads: bool = False) -> Queue:
    """Entries of one predictor, the oldest first, with these rows."""
    predictor, queue = FakePredictor(batch_rows=budget), Queue()
    predictor.batching = replace(predictor.batching, pads=pads)
    for name, count in enumerate(rows):
        queue.push(entry(name, count, predictor))
    return queue


def rows_of_batches(queue: Queue) -> list[list[int]]:
    """Rows of the entries of each batch, until nothing waits any more."""
    return [[one.rows for one in batch] for batch in iter(queue.take, [])]


def test_takes_the_oldest_with_its_nearest_in_length_the_oldest_first():
    queue = queue_of(50, 400, 52, 390, 48, 47, budget=150)

    assert rows_of_batches(queue) == [[50, 52, 48], [400], [390], [47]]


def test_a_batch_is_of_one_predictor_and_each_takes_its_turn():
    alice, bob, queue = FakePredictor(), FakePredictor(), Queue()
    for number, (rows, whose) in enumerate([(50, alice), (50, bob), (51, alice), (49, bob)]):
        queue.push(entry(number, rows, whose))

    batches = [queue.take() for _ in range(3)]

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

    assert queue.take() == [first, last]


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
        batch = queue.take()
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
    return one


def test_questions_about_one_state_go_together_whoever_asked_and_their_state_counts_once():
    predictor, queue = FakePredictor(batch_rows=200), Queue()
    for number, state in enumerate(["a" * 80, "b" * 80, "a" * 80, "b" * 80, "a" * 80]):
        queue.push(question(number, state, predictor))

    assert [[one.key for one in batch] for batch in iter(queue.take, [])] == [[0, 2, 4], [1, 3]]
