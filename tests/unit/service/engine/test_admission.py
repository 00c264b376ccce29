"""Places in the queue: how many, for whom, whether in time, and when to come back."""

from dataclasses import replace

import pytest

from service.engine.admission import Admission
from service.engine.entry import Entry
from service.engine.lengths import Size
from service.engine.pace import Pace
from service.errors import BatchTooLargeError, QueueFullError
from tests.fakes import FakePredictor, limits

PREDICTOR = FakePredictor()
PREDICTOR.batching = replace(PREDICTOR.batching, price=0)


class Door:
    """An admission whose model does 100 rows per second, whatever the batch."""

    def __init__(
        self,
        requests: int = 1_000,
        rows: int = 100_000,
        jitter: float = 0.0,
        *,
        rows_per_second: float | None = 100.0,
    ) -> None:
        self.pace = Pace(batch_seconds=1e9)
        if rows_per_second is not None:
            self.ran(rows_per_second)
        limited = limits(queue_requests=requests, queue_rows=rows)
        self.admission = Admission(limited, self.pace, jitter=lambda: jitter)

    def ran(self, rows_per_second: float, begin: float = 0.0) -> None:
        self.pace.begin(1_000, PREDICTOR.batching, begin)
        self.pace.end(begin + 1_000 / rows_per_second)

    def ask(
        self, *rows: int, client: str | None = None, within: float = 1e9, now: float = 0.0
    ) -> list[Entry]:
        """Of inputs whose rows are known."""
        self.admission.reserve(rows, client=client, within=within, now=now)
        return [Entry(i, PREDICTOR, "", one, Size(one), client) for i, one in enumerate(rows)]


def test_a_batch_gets_all_its_places_or_none():
    door = Door(requests=4)
    door.ask(10, 10)

    with pytest.raises(QueueFullError):
        door.ask(10, 10, 10)

    assert door.admission.requests == 2
    door.ask(10, 10)
    assert door.admission.requests == 4


def test_a_full_queue_in_rows_refuses_though_there_are_requests_left():
    door = Door(rows=1_000)
    [entry] = door.ask(900)

    with pytest.raises(QueueFullError, match=r"the queue is full \(1 inputs, 900 rows wait\)"):
        door.ask(900)

    door.admission.release(entry)
    door.ask(900)
    assert door.admission.rows == 900


def test_an_empty_queue_admits_anything_as_trying_again_could_not_help():
    door = Door(requests=4, rows=10)
    entries = door.ask(*[1_000] * 9)
    assert door.admission.requests == 9
    for entry in entries:
        door.admission.release(entry)

    assert len(door.ask(*[1_000] * 9)) == 9


def test_what_would_be_answered_too_late_is_refused():
    door = Door()
    door.ask(3_000)  # 30 s, and as much again would be 60 of 95

    with pytest.raises(QueueFullError, match="would not be ready within 95 s"):
        door.ask(3_000, within=95)

    door.ask(3_000, within=105)


def test_the_batch_that_runs_counts_with_what_is_left_of_it():
    door = Door()
    door.pace.begin(6_000, PREDICTOR.batching, 100)

    with pytest.raises(QueueFullError):
        door.ask(100, within=60, now=100)
    door.ask(100, within=60, now=100 + 50)


def test_a_batch_that_takes_longer_than_expected_slows_the_estimate_before_it_ends():
    door = Door()
    door.pace.begin(1_000, PREDICTOR.batching, 100)
    door.ask(1_000, within=60, now=100 + 10)

    with pytest.raises(QueueFullError):  # at most 25 rows per second by now
        door.ask(1_000, within=60, now=100 + 40)


def test_what_never_can_be_answered_in_time_is_too_large_and_not_told_to_come_back():
    door = Door()

    with pytest.raises(BatchTooLargeError, match=r"\(2 inputs, 8000 rows\) takes about 80 s"):
        door.ask(4_000, 4_000, within=60)


def test_after_a_long_rest_what_seems_too_large_is_tried():
    door = Door()
    [entry] = door.ask(8_000)
    door.admission.release(entry)

    with pytest.raises(BatchTooLargeError):
        door.ask(8_000, within=60, now=10 + 9)
    assert door.ask(8_000, within=60, now=10 + 11)


@pytest.mark.parametrize("currency", ["requests", "rows", "seconds"])
def test_a_key_may_hold_as_much_as_it_leaves_to_the_others(currency: str):
    limits = {"requests": {"requests": 8}, "rows": {"rows": 800}, "seconds": {}}[currency]
    door = Door(**limits)
    within = 8 / 0.6 + 0.1 if currency == "seconds" else 1e9  # three fifths: for 800 rows

    for _ in range(4):
        door.ask(100, client="greedy", within=within)
    with pytest.raises(QueueFullError, match="this key holds its share"):
        door.ask(100, client="greedy", within=within)

    door.ask(100, client="modest", within=within)
    door.ask(100, client=None, within=within)


def test_a_place_that_is_given_back_is_no_longer_held():
    door = Door(requests=4)
    entries = door.ask(10, 10, client="a")
    with pytest.raises(QueueFullError):
        door.ask(10, client="a")

    door.admission.release(entries[0])
    door.ask(10, client="a")


def test_retry_after_is_the_time_until_there_is_room():
    door = Door()
    door.ask(7_000)

    with pytest.raises(QueueFullError) as refused:
        door.ask(1_000, within=125)  # 75 s are for 7,500 rows

    assert refused.value.retry_after == pytest.approx(5, abs=1)


@pytest.mark.parametrize(("jitter", "seconds"), [(0.0, 10), (0.5, 15), (0.99, 20)])
def test_retry_after_spreads_the_refused_upwards(jitter: float, seconds: int):
    door = Door(jitter=jitter)
    door.ask(1_000)

    assert door.admission.retry_after(1.0, 0.0) == pytest.approx(seconds, abs=1)


@pytest.mark.parametrize("jitter", [0.0, 0.99])
def test_retry_after_is_at_least_one_second_before_anything_is_known(jitter: float):
    assert Door(jitter=jitter, rows_per_second=None).admission.retry_after(1.0, 0.0) == 1


def test_an_estimate_is_settled_for_everyone_who_counts_it():
    door = Door(rows=1_000)
    [entry, _] = door.ask(300, 100, client="a")

    door.admission.settle(entry, 50)

    assert entry.rows == 50
    assert door.admission.rows == 150
    door.ask(500, client="a")  # more than its share, if it still held 400
    door.admission.release(entry)
    assert door.admission.rows == 600
