"""Places in the queue: how many, for whom, whether in time, and when to come back."""

from dataclasses import replace

import pytest

from service.engine.admission import Admission
from service.engine.entry import Entry
from service.engine.lengths import Lengths
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
        for taught in 300 * (10, 10_000):  # what was supposed before is forgotten
            for entry in self.ask(taught):
                self.admission.release(entry)

    def ran(self, rows_per_second: float, begin: float = 0.0) -> None:
        self.pace.begin(1_000, PREDICTOR.batching, begin)
        self.pace.end(begin + 1_000 / rows_per_second)

    def ask(
        self, *rows: int, client: str | None = None, within: float = 1e9, now: float = 0.0
    ) -> list[Entry]:
        """Of inputs that are said to have as many characters as rows."""
        estimates = self.admission.reserve(rows, client=client, within=within, now=now)
        entries = [
            Entry(i, PREDICTOR, "", estimate, client) for i, estimate in enumerate(estimates)
        ]
        for entry, exact in zip(entries, rows, strict=True):
            self.admission.settle(entry, exact, exact)
        return entries


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
    door.ask(3_000)  # 30 s, and as much again would be 60 of 75

    with pytest.raises(QueueFullError, match="would not be ready within 75 s"):
        door.ask(3_000, within=75)

    door.ask(3_000, within=85)


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
    within = 8 / 0.75 + 0.1 if currency == "seconds" else 1e9  # three quarters: for 800 rows

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
        door.ask(1_000, within=100)  # 75 s are for 7,500 rows

    assert refused.value.retry_after == pytest.approx(5, abs=1)


@pytest.mark.parametrize(("jitter", "seconds"), [(0.0, 10), (0.5, 15), (0.99, 20)])
def test_retry_after_spreads_the_refused_upwards(jitter: float, seconds: int):
    door = Door(jitter=jitter)
    door.ask(1_000)

    assert door.admission.retry_after(1.0, 0.0) == pytest.approx(seconds, abs=1)


@pytest.mark.parametrize("jitter", [0.0, 0.99])
def test_retry_after_is_at_least_one_second_before_anything_is_known(jitter: float):
    assert Door(jitter=jitter, rows_per_second=None).admission.retry_after(1.0, 0.0) == 1


def test_rows_are_estimated_from_the_length_and_settled():
    door = Door()

    assert door.admission.reserve([300], client=None, within=1e9, now=0.0) == [300]
    assert door.admission.rows == 300


def test_lengths_lie_on_a_line_that_ends_where_inputs_are_cut():
    lengths = Lengths()
    for characters in range(0, 40_000, 400):
        lengths.learn(characters, 50 + characters // 4)

    assert lengths.rows(200) == pytest.approx(100, abs=5)
    assert lengths.rows(0) == pytest.approx(50, abs=5)
    assert lengths.rows(1_000_000) == 50 + 39_600 // 4


def test_before_anything_is_known_a_length_counts_for_something():
    assert Lengths().rows(400) == 160


def test_lengths_follow_what_comes():
    lengths = Lengths()
    for _ in range(300):
        lengths.learn(100, 1_000)
    for _ in range(300):
        lengths.learn(100, 50)

    assert lengths.rows(100) == pytest.approx(50, abs=5)
