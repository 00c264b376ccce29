"""More work than the model can do, on a virtual clock: what is accepted is answered in time."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.crowds import SHELL_ROWS, Crowd, Machine, Record, play

DEADLINE = 60.0
GOOD = 0.95
MACHINES = {
    "slow": Machine(lambda _: 60.0),
    "usual": Machine(lambda _: 500.0),
    "fast": Machine(lambda _: 20_000.0, price=256, batch_rows=8_192),
}
MIXED, LONG = (20, 60, 120, 240), (150, 200, 280)


def of(machine: Machine, times: float, within: float = DEADLINE, **options: object) -> Crowd:
    """A crowd that wants so many times what the machine can do."""
    return Crowd(times * machine.capacity(within), **options)  # type: ignore[arg-type]


def assert_kept(record: Record, within: float, since: float = 0.0) -> None:
    """Whoever was accepted was answered in time, and whoever was not heard at once."""
    assert not record.select("DeadlineError", since=since)
    assert not record.select("dropped", since=since)
    refused = record.select("QueueFullError", since=since)
    assert all(one.ended == one.arrived for one in refused)
    took = [one.ended - one.arrived for one in record.select("answered", since=since)]
    assert np.percentile(took, 99) < within


@pytest.mark.parametrize("times", [2, 4, 10])
@pytest.mark.parametrize("name", MACHINES)
def test_nearly_all_of_the_capacity_goes_into_answers_in_time(name: str, times: float):
    machine = MACHINES[name]
    within = 2.5 if name == "fast" else DEADLINE
    until = 480 if name == "slow" else 2.5 * within
    crowd = of(machine, times, within, characters=LONG if name == "fast" else MIXED)

    record = play(machine, [crowd], within=within, until=until)

    assert_kept(record, within)
    assert record.goodput(within, until) > GOOD * machine.capacity(within)


@pytest.mark.parametrize("inputs", [4, 16])
def test_of_batches_too_all_or_nothing(inputs: int):
    machine = MACHINES["usual"]
    crowds = [of(machine, 2, inputs=inputs), of(machine, 0.5)]

    record = play(machine, crowds, within=DEADLINE, until=150)

    assert_kept(record, DEADLINE)
    assert record.goodput(60, 150) > GOOD * machine.capacity(DEADLINE)
    assert record.select("answered", crowds[0])


@pytest.mark.parametrize(("noise", "seed"), [(0.15, 6), (0.15, 8), (0.25, 1), (0.25, 18)])
def test_where_keys_and_batches_compete_a_moment_that_is_slow_makes_nothing_late(
    noise: float, seed: int
):
    machine = Machine(lambda _: 1_500.0, noise=noise)
    asked = [("modest", 0.1, 1), ("busy", 0.475, 1), ("greedy", 0.475, 8), ("greedy", 0.95, 32)]
    crowds = [
        of(machine, times, inputs=inputs, characters=(20, 60, 120, 400), key=key)
        for key, times, inputs in asked
    ]

    record = play(machine, crowds, within=DEADLINE, until=300, seed=seed)

    assert_kept(record, DEADLINE)
    assert record.goodput(60, 300) > GOOD * machine.capacity(DEADLINE)


def test_of_questions_too_whose_state_is_read_once():
    machine = MACHINES["usual"]
    crowds = [of(machine, 2, inputs=8, state=300, characters=(20, 40)), of(machine, 0.5)]

    record = play(machine, crowds, within=DEADLINE, until=180)

    assert_kept(record, DEADLINE)
    assert record.goodput(60, 180) > GOOD * machine.capacity(DEADLINE)
    assert all(record.select("answered", crowd) for crowd in crowds)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows_per_second=st.floats(60, 5_000),
    price=st.floats(10, 120),
    within=st.floats(5, 60),
    times=st.floats(2, 10),
    noise=st.floats(0, 0.15),
    lengths=st.lists(st.integers(7, 280), min_size=1, max_size=5),
    seed=st.integers(0, 1_000),
)
def test_whatever_the_machine_no_accepted_request_is_late(
    rows_per_second: float,
    price: float,
    within: float,
    times: float,
    noise: float,
    lengths: Sequence[int],
    seed: int,
):
    machine = Machine(lambda _: rows_per_second, price=price, noise=noise)
    longest = max(lengths) + SHELL_ROWS
    assume(machine.room(within) > 4 * longest)  # else no batch is worth its name
    crowd = of(machine, times, within, characters=lengths)
    until = 600 * crowd.request_rows / crowd.rows_per_second  # of six hundred requests

    record = play(machine, [crowd], within=within, until=until, seed=seed)

    assert_kept(record, within)
    if until > 3 * within:
        goodput = record.goodput(within, until)
        assert goodput > 0.8 * machine.capacity(within)  # whatever its price and noise are


def test_a_machine_that_becomes_ten_times_slower_is_noticed_within_a_batch():
    before, after, change = 1_000.0, 100.0, 60.0
    machine = Machine(lambda now: before if now < change else after)
    crowd = Crowd(2 * before)

    record = play(machine, [crowd], within=DEADLINE, until=300)

    one_batch = 2_048 / after
    assert_kept(record, DEADLINE, since=change + one_batch)
    slow = Machine(lambda _: after)
    goodput = record.goodput(change + DEADLINE, 300)
    assert goodput > GOOD * slow.capacity(DEADLINE)


def test_a_machine_that_becomes_ten_times_faster_is_used():
    before, after, change = 100.0, 1_000.0, 90.0
    machine = Machine(lambda now: before if now < change else after)
    crowd = Crowd(2 * after)

    record = play(machine, [crowd], within=DEADLINE, until=150)

    assert_kept(record, DEADLINE)
    assert record.goodput(change + 20, 150) > GOOD * machine.capacity(DEADLINE, at=change)


def test_a_hiccup_costs_nobody_the_place():
    machine = Machine(lambda now: 200.0 if 58 < now < 60 else 1_000.0)

    record = play(machine, [Crowd(2_000.0)], within=DEADLINE, until=150)

    assert_kept(record, DEADLINE)
    assert record.goodput(70, 150) > GOOD * machine.capacity(DEADLINE)


@pytest.mark.parametrize("name", ["slow", "usual"])
def test_the_estimate_is_right_from_the_first_request_on(name: str):
    machine = MACHINES[name]

    record = play(machine, [of(machine, 10)], within=DEADLINE, until=DEADLINE)

    assert_kept(record, DEADLINE)


@pytest.mark.parametrize("seed", range(4))
def test_a_key_that_asks_for_little_gets_it_whatever_the_others_want(seed: int):
    machine = MACHINES["usual"]
    greedy = of(machine, 5, key="greedy")
    modest = of(machine, 0.1, key="modest")
    batches = of(machine, 0.1, key="batches", inputs=16)

    record = play(machine, [greedy, modest, batches], within=DEADLINE, until=240, seed=seed)

    assert_kept(record, DEADLINE)
    for crowd in (modest, batches):
        answered, asked = record.select("answered", crowd), record.select(crowd=crowd)
        assert len(answered) >= GOOD * len(asked)
    assert record.goodput(60, 240) > GOOD * machine.capacity(DEADLINE)
    took = [one.ended - one.arrived for one in record.select("answered", modest)]
    greeds = [one.ended - one.arrived for one in record.select("answered", greedy, since=60)]
    assert np.median(took) < np.median(greeds) * 2 / 3


def test_keys_that_want_more_than_there_is_get_the_same_whatever_they_send():
    machine = MACHINES["usual"]
    crowds = [
        of(machine, 4, key="short", characters=(20, 40)),
        of(machine, 2, key="long", characters=LONG),
        of(machine, 2, key="batches", inputs=16),
    ]

    record = play(machine, crowds, within=DEADLINE, until=240)

    assert_kept(record, DEADLINE)
    shares = [record.goodput(60, 240, crowd) for crowd in crowds]
    assert min(shares) > 0.7 * max(shares)
    assert sum(shares) > GOOD * machine.capacity(DEADLINE)


def test_without_pressure_nobody_is_refused():
    machine = MACHINES["usual"]
    crowds = [of(machine, 0.4, key="a"), of(machine, 0.3, key="b", inputs=16)]

    record = play(machine, crowds, within=DEADLINE, until=240)

    assert len(record.select("answered")) == len(record.outcomes)


def test_who_comes_back_when_told_finds_a_place():
    machine = MACHINES["usual"]
    flood = of(machine, 4, key="flood", goes=80)
    refused = [
        one
        for one in play(machine, [flood], within=DEADLINE, until=80).outcomes
        if one.how == "QueueFullError" and one.arrived > 79
    ]
    assert refused
    for wait in sorted({one.retry_after for one in refused if one.retry_after})[:3]:
        back = Crowd(1e-3, key="back", comes=80 + wait)
        record = play(machine, [flood, back], within=DEADLINE, until=85 + wait)
        [again] = record.select(crowd=back)
        assert again.how == "answered"


def test_what_waits_does_not_grow_with_what_is_asked():
    machine = MACHINES["usual"]
    waiting = [
        play(machine, [of(machine, times)], within=DEADLINE, until=90).most_rows_waiting
        for times in (4, 8)
    ]

    assert max(waiting) < 1.1 * min(waiting)
    assert max(waiting) < machine.capacity(DEADLINE) * DEADLINE
