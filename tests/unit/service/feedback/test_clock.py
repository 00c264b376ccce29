"""Clocks that jump."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from service.feedback.clock import BELIEVED_AFTER_SECONDS, SteadyClock
from tests.serving import RunningServer, serving

DAY = 86_400.0
START = 1_800_000_000.0


class Machine:
    """A machine whose clock can be set."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.wrong_by = 0.0

    def wall(self) -> float:
        return START + self.passed + self.wrong_by

    def clock(self, remembered: float | None = None) -> SteadyClock:
        return SteadyClock(remembered, wall=self.wall, steady=lambda: self.passed)


jumps = st.floats(-400 * DAY, 400 * DAY).filter(lambda seconds: abs(seconds) > 60)


@given(st.lists(st.tuples(jumps, st.floats(0, DAY / 25)), max_size=20))
def test_jumps_that_do_not_last_move_nothing(steps: list[tuple[float, float]]):
    machine = Machine()
    clock = machine.clock()
    for jump, seconds in steps:
        machine.wrong_by, machine.passed = jump, machine.passed + seconds
        assert clock.now() == pytest.approx(START + machine.passed, abs=0.01)
        assert clock.for_deleting() == clock.now()
        machine.wrong_by = 0.0
        assert clock.now() == pytest.approx(START + machine.passed, abs=0.01)


@given(jumps)
def test_a_jump_that_lasts_is_believed_after_a_day_and_said_at_once(jump: float):
    machine = Machine()
    clock = machine.clock()
    machine.wrong_by = jump
    with capture_logs() as logs:
        clock.now()
        machine.passed += BELIEVED_AFTER_SECONDS - 1
        assert clock.now() == pytest.approx(START + machine.passed, abs=0.01)
        machine.passed += 1
        assert clock.now() == pytest.approx(machine.wall(), abs=0.01)
    assert [line["event"] for line in logs] == ["clock_jumped"]
    assert logs[0]["seconds"] == pytest.approx(jump, abs=1)


@given(st.lists(st.floats(-50, 50), max_size=50))
def test_small_corrections_are_followed(corrections: list[float]):
    machine = Machine()
    clock = machine.clock()
    with capture_logs() as logs:
        for correction in corrections:
            machine.wrong_by += correction
            machine.passed += 60
            assert clock.now() == pytest.approx(machine.wall(), abs=0.01)
    assert logs == []


def test_after_a_short_pause_the_clock_is_believed():
    machine = Machine()
    clock = machine.clock(START - DAY + 1)
    assert clock.now() == clock.for_deleting() == START


def test_a_long_pause_may_be_a_jump_until_a_day_has_passed():
    machine = Machine()
    clock = machine.clock(START - 40 * DAY)
    assert clock.now() == START
    assert clock.for_deleting() == START - 40 * DAY
    machine.passed = DAY - 1
    assert clock.for_deleting() == START - 39 * DAY - 1
    machine.passed = DAY
    assert clock.for_deleting() == machine.wall()


def test_it_is_never_earlier_than_it_was():
    machine = Machine()
    machine.wrong_by = -20_000 * DAY  # no battery: it begins in 1970
    clock = machine.clock(START)
    assert clock.now() == START
    machine.wrong_by = 0.0  # and the network tells the time
    machine.passed = 5.0
    assert clock.now() == START + 5


async def judged_answer(server: RunningServer, text: str) -> None:
    body = (await server.predict(text)).json()
    judgement = {"request_id": body["request_id"], "label": "positive"}
    assert (await server.client.post("/feedback", json=judgement)).status_code == 200


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    clock: Callable[[float | None], SteadyClock] = machine.clock
    monkeypatch.setattr("service.feedback.ledger.SteadyClock", clock)
    return machine


@pytest.mark.parametrize("jump", [40 * DAY, -40 * DAY])
async def test_a_clock_that_jumps_deletes_no_judged_answer(
    machine: Machine, tmp_path: Path, jump: float
):
    # With so few answers, each that is added has those that are too old deleted.
    store = {"feedback_store": tmp_path / "f.sqlite", "feedback_max_rows": 50}
    judged = 'dalorra_judged_answers{adapter="fake-adapter"}'
    async with serving(**store) as server:
        await judged_answer(server, "before")
        machine.wrong_by = jump
        await judged_answer(server, "meanwhile")
        machine.wrong_by = 0.0
        await judged_answer(server, "after")
        await server.until_metric(judged, 3)
    machine.wrong_by = jump
    async with serving(**store) as server:  # a machine that starts with the wrong date
        await judged_answer(server, "at the start")
        await server.until_metric(judged, 4)
    machine.wrong_by = 0.0
    async with serving(**store) as server:
        await judged_answer(server, "at the end")
        await server.until_metric(judged, 5)
        machine.passed = 31 * DAY + 1  # and in the end they are too old
        await server.predict("another")
        # What was given the wrong date at a start is deleted late, never early.
        await server.until_metric(judged, 1 if jump > 0 else 0)
