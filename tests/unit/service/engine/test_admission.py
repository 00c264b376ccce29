"""Places in the queue, and when to come back."""

import pytest

from service.engine.admission import Admission
from service.errors import QueueFullError
from tests.fakes import limits


def admission(requests: int = 4, rows: int = 1_000, jitter: float = 0.0) -> Admission:
    return Admission(limits(queue_requests=requests, queue_rows=rows), jitter=lambda: jitter)


def test_a_batch_gets_all_its_places_or_none():
    places = admission(requests=4)
    places.reserve(2)

    with pytest.raises(QueueFullError):
        places.reserve(3)

    assert places.requests == 2
    places.reserve(2)
    assert places.requests == 4


def test_rows_are_estimated_from_recent_inputs_and_settled():
    places = admission(requests=100, rows=1_000)
    assert places.reserve(1) == 0
    places.settle(0, 400)

    assert places.reserve(1) == 400
    assert places.rows == 800
    places.settle(400, 100)
    assert places.rows == 500
    assert places.reserve(1) == 340  # 0.8 · 400 + 0.2 · 100


def test_a_full_queue_in_rows_refuses_though_there_are_requests_left():
    places = admission(requests=100, rows=1_000)
    places.reserve(1)
    places.settle(0, 900)

    with pytest.raises(QueueFullError, match="1 inputs, 900 rows wait"):
        places.reserve(1)

    places.release(900)
    assert places.reserve(1) == 900


def test_an_empty_queue_admits_anything_as_trying_again_could_not_help():
    places = admission(requests=4, rows=10)
    estimate = places.reserve(9)
    assert places.requests == 9
    for _ in range(9):
        places.settle(estimate, 1_000)
        places.release(1_000)

    assert places.reserve(9) == 1_000


def test_retry_after_is_the_waiting_rows_over_the_recent_pace_rounded_up():
    places = admission(requests=1, rows=10_000)
    places.batch_finished(rows=100, seconds=1.0)
    places.reserve(1)
    places.settle(0, 730)

    with pytest.raises(QueueFullError) as refused:
        places.reserve(1)

    assert refused.value.retry_after == 8  # 7.3 s


def test_the_pace_follows_recent_batches():
    places = admission()
    for _ in range(50):
        places.batch_finished(rows=100, seconds=1.0)
    for _ in range(50):
        places.batch_finished(rows=100, seconds=10.0)
    places.reserve(1)
    places.settle(0, 100)

    assert places.retry_after() == pytest.approx(10, abs=1)


@pytest.mark.parametrize(("jitter", "seconds"), [(0.0, 10), (0.5, 15), (0.99, 20)])
def test_retry_after_spreads_the_refused_upwards(jitter: float, seconds: int):
    places = admission(jitter=jitter)
    places.batch_finished(rows=100, seconds=1.0)
    places.reserve(1)
    places.settle(0, 1_000)

    assert places.retry_after() == seconds


@pytest.mark.parametrize(("jitter", "seconds"), [(0.0, 1), (0.99, 1)])
def test_retry_after_is_at_least_one_second_before_anything_is_known(jitter: float, seconds: int):
    assert admission(jitter=jitter).retry_after() == seconds
