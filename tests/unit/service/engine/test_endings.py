"""How requests end otherwise than answered, and the engine itself, on a virtual clock."""

import asyncio
from typing import Any
from unittest.mock import patch

from dalorra.errors import InputError
from dalorra.prompts import Prompt
from service.errors import (
    DeadlineError,
    DrainingError,
    InferenceError,
    QueueFullError,
    UnavailableError,
)
from tests.engine_bench import Bench, on_bench, outcome
from tests.fakes import limits
from tests.virtual_time import VirtualLoop, run


@on_bench(limited=limits(queue_requests=1))
async def test_a_disconnect_frees_the_place(bench: Bench):
    running = bench.ask("a")
    await bench.at(1)
    leaving = bench.ask("b")
    await bench.at(2)
    assert isinstance(await outcome(bench.ask("c")), QueueFullError)

    leaving.cancel()
    await asyncio.wait([leaving])
    await asyncio.gather(running, bench.ask("c"))

    assert bench.ran == [["a"], ["c"]]
    bench.assert_empty()


@on_bench(tokenize=3.0)
async def test_a_disconnect_while_tokenising_frees_the_place(bench: Bench):
    leaving = bench.ask("a")
    await bench.at(1)
    assert bench.engine.queue_requests == 1

    leaving.cancel()
    await asyncio.wait([leaving])

    bench.assert_empty()
    await bench.at(10)
    assert bench.ran == []
    bench.assert_empty()


@on_bench()
async def test_a_deadline_frees_the_place_and_spares_the_forward(bench: Bench):
    running = bench.ask("a")
    await bench.at(1)
    late = bench.ask("b", within=5)

    error = await outcome(late)

    assert isinstance(error, DeadlineError)
    assert bench.loop.now == 6
    assert bench.engine.queue_requests == 0
    await running
    assert bench.ran == [["a"]]


@on_bench()
async def test_a_deadline_during_the_forward_wastes_nobody_elses(bench: Bench):
    late, patient = bench.ask("a", within=5), bench.ask("b")

    assert isinstance(await outcome(late), DeadlineError)
    assert bench.loop.now == 5
    await patient
    bench.assert_empty()


@on_bench()
async def test_an_entry_whose_time_is_up_is_skipped_though_its_timer_is_late(bench: Bench):
    running = bench.ask("a")
    await bench.at(1)
    # As if the loop were too busy to tell the caller.
    with patch("asyncio.timeout_at", lambda _: asyncio.timeout(None)):
        late = bench.ask("b", within=4)
        await bench.at(2)

    assert isinstance(await outcome(late), DeadlineError)
    assert bench.loop.now == 10
    await running
    assert bench.ran == [["a"]]
    bench.assert_empty()


@on_bench()
async def test_an_entry_lives_as_long_as_the_most_patient_of_its_callers(bench: Bench):
    running = bench.ask("a")
    await bench.at(1)
    hasty, patient = bench.ask("b", within=5), bench.ask("b", within=500)

    assert isinstance(await outcome(hasty), DeadlineError)
    await asyncio.gather(running, patient)

    assert bench.loop.now == 20
    assert bench.ran == [["a"], ["b"]]
    bench.assert_empty()


@on_bench()
async def test_an_invalid_input_fails_its_request_alone(bench: Bench):
    running = bench.ask("a")
    await bench.at(1)
    invalid, fine = bench.ask("b", ""), bench.ask("c")
    single = bench.ask({"title": "b"})

    error = await outcome(invalid)

    assert isinstance(error, InputError)
    assert (str(error), error.place) == ("input is empty: send some text", 1)
    assert "wrong fields" in str(await outcome(single))
    assert bench.loop.now == 1  # told at once
    await asyncio.gather(running, fine)
    assert bench.ran == [["a"], ["c"]]  # the good half of a refused batch is not run
    bench.assert_empty()


@on_bench()
async def test_a_poisoned_input_fails_its_request_alone(bench: Bench):
    running = bench.ask("a")
    await bench.at(1)
    poisoned, fine = bench.ask("☠"), bench.ask("c")

    await asyncio.gather(running, fine)

    assert isinstance(await outcome(poisoned), InferenceError)
    assert bench.engine.alive
    bench.assert_empty()


@on_bench()
async def test_a_tokeniser_that_breaks_fails_its_request_alone(bench: Bench):
    def broken(value: Any) -> Prompt:
        raise OverflowError("can't convert negative int to unsigned")

    good, bench.predictor.encode = bench.predictor.encode, broken  # type: ignore[method-assign]
    assert isinstance(await outcome(bench.ask("a")), InferenceError)
    bench.predictor.encode = good  # type: ignore[method-assign]

    await bench.ask("a")
    bench.assert_empty()


@on_bench()
async def test_a_broken_device_fails_everyone_and_liveness(bench: Bench):
    first = bench.ask("a")
    await bench.at(1)
    second = bench.ask("b")
    assert bench.engine.alive
    bench.predictor.broken = True

    assert isinstance(await outcome(first), UnavailableError)
    assert isinstance(await outcome(second), UnavailableError)
    assert isinstance(await outcome(bench.ask("c")), UnavailableError)
    assert not bench.engine.alive
    bench.assert_empty()
    await bench.engine.drain(5)  # and it can still be shut down


@on_bench(forward=1_000.0, limited=limits(stall_seconds=60))
async def test_a_forward_that_hangs_fails_liveness(bench: Bench):
    hung = bench.ask("a", within=5_000)
    await bench.at(60)
    assert bench.engine.alive
    await bench.at(61)
    assert not bench.engine.alive
    await hung


@on_bench()
async def test_draining_answers_what_is_queued_and_refuses_the_rest(bench: Bench):
    accepted = [bench.ask("a")]
    await bench.at(1)
    accepted.append(bench.ask("b"))
    await bench.at(2)

    draining = bench.loop.create_task(bench.engine.drain(30))
    await bench.at(3)

    assert isinstance(await outcome(bench.ask("c")), DrainingError)
    await draining
    assert bench.loop.now == 20  # no longer than the queue takes
    assert all(len(task.result()) == 1 for task in accepted)
    bench.assert_empty()


@on_bench()
async def test_draining_gives_up_after_its_time(bench: Bench):
    running = bench.ask("a")
    await bench.at(1)
    waiting = bench.ask("b")
    await bench.at(2)

    await bench.engine.drain(3)

    assert bench.loop.now == 5
    assert isinstance(await outcome(running), DrainingError)
    assert isinstance(await outcome(waiting), DrainingError)
    bench.assert_empty()


@on_bench()
async def test_draining_an_idle_engine_takes_no_time(bench: Bench):
    await bench.engine.drain(30)

    assert bench.loop.now == 0
    assert not bench.engine.alive


def test_errors_of_one_refusal_are_not_shared_between_requests():
    async def main(loop: VirtualLoop) -> None:
        bench = Bench(loop)
        await bench.engine.drain(0)
        first, second = await outcome(bench.ask("a")), await outcome(bench.ask("b"))
        assert first is not second  # or each raise would lengthen the other's traceback

    run(main)
