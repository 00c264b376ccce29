"""Which entries go together, and that none is left behind."""

from hypothesis import given
from hypothesis import strategies as st

from service.engine.entry import Entry
from service.engine.queue import Queue
from tests.fakes import FakePredictor

ALICE, BOB = FakePredictor(), FakePredictor()


def entry(name: object, rows: int, predictor: FakePredictor | None = None) -> Entry:
    return Entry(key=name, predictor=predictor or ALICE, value=str(name), rows=rows)


def queue_of(*rows: int) -> Queue:
    queue = Queue()
    for name, count in enumerate(rows):
        queue.push(entry(name, count))
    return queue


def test_takes_the_oldest_with_its_nearest_in_length_from_short_to_long():
    queue = queue_of(50, 400, 52, 390, 48, 47)

    assert [one.rows for one in queue.take(budget=160)] == [48, 50, 52]
    assert [one.rows for one in queue.take(budget=160)] == [400]
    assert [one.rows for one in queue.take(budget=160)] == [390]
    assert [one.rows for one in queue.take(budget=160)] == [47]
    assert queue.take(budget=160) == []


def test_a_batch_is_of_one_predictor_and_each_takes_its_turn():
    queue = Queue()
    for number, (rows, whose) in enumerate([(50, ALICE), (50, BOB), (51, ALICE), (49, BOB)]):
        queue.push(entry(number, rows, whose))

    batches = [queue.take(budget=1_000) for _ in range(3)]

    assert [[(one.predictor, one.rows) for one in batch] for batch in batches] == [
        [(ALICE, 50), (ALICE, 51)],
        [(BOB, 49), (BOB, 50)],
        [],
    ]


def test_padding_counts_against_the_budget():
    queue = queue_of(60, 50, 50)

    assert [one.rows for one in queue.take(budget=160)] == [50, 60]  # 3 · 60 > 160


def test_an_entry_over_the_budget_goes_alone():
    queue = queue_of(5_000, 10)

    assert [one.rows for one in queue.take(budget=100)] == [5_000]
    assert [one.rows for one in queue.take(budget=100)] == [10]


def test_an_entry_can_leave_from_the_middle():
    queue = queue_of(10)
    gone = entry("gone", 10)
    queue.push(gone)
    queue.push(entry("last", 10))

    queue.discard(gone)
    queue.discard(gone)

    assert [one.key for one in queue.take(budget=100)] == [0, "last"]


@given(
    st.lists(st.one_of(st.integers(1, 500), st.just("take")), max_size=200),
    st.integers(1, 1_000),
)
def test_nothing_is_lost_repeated_or_starved(steps: list[int | str], budget: int):
    queue = Queue()
    others_ahead: dict[Entry, int] = {}
    taken: list[Entry] = []
    pushed: list[Entry] = []

    def take() -> None:
        batch = queue.take(budget)
        taken.extend(batch)
        assert batch == sorted(batch, key=lambda one: one.rows)
        if len(batch) > 1:
            assert batch[-1].rows * len(batch) <= budget
        for one in batch:
            del others_ahead[one]
        # Each batch brings everyone that still waits closer to the front by at least one.
        for one, ahead in others_ahead.items():
            assert ahead > 0
            others_ahead[one] = ahead - 1

    for step in steps:
        if isinstance(step, int):
            one = entry(len(pushed), step)
            others_ahead[one] = len(queue)
            pushed.append(one)
            queue.push(one)
        else:
            take()
    while len(queue):
        take()

    assert sorted(taken, key=lambda one: int(str(one.key))) == pushed
