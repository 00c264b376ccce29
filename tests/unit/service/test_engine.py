"""The engine on a virtual clock: every time below is exact."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from dalorra.errors import InputError
from dalorra.prompts import Prompt
from service.engine import Answer, Engine, Limits
from service.errors import (
    DeadlineError,
    DrainingError,
    InferenceError,
    QueueFullError,
    UnavailableError,
)
from tests.fakes import FakePredictor, expected_prediction, limits
from tests.virtual_time import VirtualLoop, VirtualThread, run


@dataclass
class Record:
    """An observer that remembers."""

    tokens: list[int] = field(default_factory=list)
    joined: int = 0
    waits: list[float] = field(default_factory=list)
    batches: list[tuple[int, int, float]] = field(default_factory=list)

    def tokenized(self, tokens: int, seconds: float) -> None:
        self.tokens.append(tokens)

    def coalesced(self) -> None:
        self.joined += 1

    def dequeued(self, waited: float) -> None:
        self.waits.append(waited)

    def batch_finished(self, requests: int, rows: int, seconds: float) -> None:
        self.batches.append((requests, rows, seconds))


class Bench:
    """An engine whose forward takes 10 s and whose tokeniser takes `tokenize` s per call."""

    def __init__(
        self,
        loop: VirtualLoop,
        *,
        limited: Limits | None = None,
        tokenize: float = 0.0,
        forward: float = 10.0,
        fields: Sequence[str] = ("sentence",),
    ) -> None:
        self.loop = loop
        self.predictor = FakePredictor(fields)
        self.record = Record()
        self.engine = Engine(
            model=VirtualThread(loop, lambda prompts: forward),
            tokenizer=VirtualThread(loop, lambda entries: tokenize),
            limits=limited or limits(),
            observer=self.record,
        )
        self.engine.start()

    def ask(self, *inputs: Any, within: float = 1_000.0) -> asyncio.Task[list[Answer]]:
        return self.loop.create_task(self.engine.predict(self.predictor, inputs, within=within))

    async def at(self, moment: float) -> None:
        await asyncio.sleep(moment - self.loop.now)

    @property
    def ran(self) -> list[list[str]]:
        return [[text_of(prompt) for prompt in batch] for batch in self.predictor.batches]

    def assert_empty(self) -> None:
        assert self.engine.queue_requests == 0
        assert self.engine.queue_rows == 0
        assert not self.engine._in_flight
        assert not len(self.engine._queue)


def text_of(prompt: Prompt) -> str:
    return "".join(map(chr, prompt.prompt_ids))


def on_bench(**options: Any) -> Any:
    """Runs a test's coroutine with a fresh bench on a virtual loop."""

    def decorate(test: Any) -> Any:
        def wrapper() -> None:
            async def main(loop: VirtualLoop) -> None:
                bench = Bench(loop, **options)
                await test(bench)
                await bench.engine.drain(0)

            run(main)

        wrapper.__name__ = test.__name__
        return wrapper

    return decorate


async def outcome(work: Coroutine[Any, Any, Any] | asyncio.Task[Any]) -> Any:
    try:
        return await work
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return error


@on_bench()
async def test_while_one_batch_runs_the_next_one_fills(bench: Bench):
    first = bench.ask("a")
    await bench.at(1)
    others = [bench.ask(text) for text in "bcde"]

    await asyncio.gather(first, *others)

    assert bench.ran == [["a"], ["b", "c", "d", "e"]]
    assert bench.loop.now == 20
    [answer] = others[0].result()
    assert answer.prediction == expected_prediction(bench.predictor.encode("b"))
    assert (answer.queue_seconds, answer.inference_seconds, answer.batch_requests) == (9, 10, 4)
    assert bench.record.batches == [(1, 21, 10), (4, 84, 10)]
    bench.assert_empty()


@on_bench()
async def test_an_idle_engine_answers_at_once(bench: Bench):
    await bench.at(1_000)
    await bench.ask("a")

    assert bench.loop.now == 1_010
    assert bench.record.waits == [0]


@on_bench(tokenize=4.0)
async def test_tokenising_overlaps_the_running_forward(bench: Bench):
    first = bench.ask("a")
    await bench.at(5)  # its forward began at 4
    second = bench.ask("b")

    await asyncio.gather(first, second)

    assert bench.loop.now == 24  # 4 + 10 + 10; without the overlap, 28


@on_bench()
async def test_answers_of_a_batch_keep_the_order_of_its_inputs(bench: Bench):
    texts = ["a long sentence", "b", "a middling one", "c"]

    answers = await bench.ask(*texts)

    assert [one.prediction for one in answers] == [
        expected_prediction(bench.predictor.encode(text)) for text in texts
    ]


@on_bench()
async def test_identical_inputs_in_flight_run_once(bench: Bench):
    first = bench.ask("a")
    await bench.at(5)  # the first is running by now
    same = [bench.ask("a"), bench.ask({"sentence": "a"}), bench.ask("a", "b", "a")]

    await asyncio.gather(first, *same)

    assert bench.ran == [["a"], ["b"]]
    assert bench.record.joined == 4
    assert {task.result()[0].prediction.probability for task in [first, *same]} == {
        first.result()[0].prediction.probability
    }
    await bench.ask("a")  # answered ones are no longer in flight
    assert bench.ran[2:] == [["a"]]


@on_bench()
async def test_an_answer_of_all_samples_serves_those_who_need_fewer_and_not_the_reverse(
    bench: Bench,
):
    busy = bench.ask("busy")
    await bench.at(1)
    lax, strict = (
        bench.predictor.policy,
        bench.predictor.policy.model_copy(update={"min_probability": 0.99}),
    )
    crowd = (("a", lax), ("a", None), ("a", lax), ("b", lax), ("b", lax), ("b", strict))
    asked = [
        bench.loop.create_task(
            bench.engine.predict(bench.predictor, [text], within=99, decider=decider)
        )
        for text, decider in crowd
    ]
    await asyncio.gather(busy, *asked)

    used = [answer.prediction.samples for task in asked for answer in task.result()]
    assert used == [6, 10, 10, 6, 6, 6]
    assert bench.ran == [["busy"], ["a", "a", "b", "b"]]  # in one batch, whoever may stop early


@on_bench(fields=("claim", "evidence"))
async def test_the_order_of_fields_makes_no_difference(bench: Bench):
    await asyncio.gather(
        bench.ask({"claim": "a", "evidence": "b"}), bench.ask({"evidence": "b", "claim": "a"})
    )

    assert bench.ran == [["ab"]]


@on_bench(limited=limits(queue_requests=2))
async def test_a_coalesced_input_needs_no_place(bench: Bench):
    running = bench.ask("a")
    await bench.at(1)
    waiting = [bench.ask("b"), bench.ask("c")]
    await bench.at(2)

    joined = bench.ask("b", "c")
    await asyncio.gather(running, *waiting, joined)

    assert len(bench.record.tokens) == 3


@on_bench()
async def test_a_shared_entry_outlives_the_caller_who_brought_it(bench: Bench):
    running = bench.ask("x")
    await bench.at(1)
    owner, guest = bench.ask("a"), bench.ask("a")
    await bench.at(2)

    owner.cancel()
    await asyncio.gather(running, guest)

    assert bench.ran == [["x"], ["a"]]
    assert owner.cancelled()
    bench.assert_empty()


@on_bench(limited=limits(queue_requests=3))
async def test_a_full_queue_refuses_before_it_spends_anything(bench: Bench):
    running = bench.ask("a")
    await bench.at(1)
    waiting = [bench.ask("b"), bench.ask("c")]
    await bench.at(2)
    before = len(bench.predictor.encoded)

    refused = await outcome(bench.ask("d", "e"))

    assert isinstance(refused, QueueFullError)
    assert refused.retry_after is not None
    assert bench.loop.now == 2
    assert len(bench.predictor.encoded) == before
    assert bench.engine.queue_requests == 2
    last = bench.ask("f")
    await asyncio.gather(running, *waiting, last)
    bench.assert_empty()


@on_bench(limited=limits(queue_rows=100))
async def test_a_full_queue_in_rows_refuses(bench: Bench):
    running = bench.ask("a" * 10)
    await bench.at(1)
    waiting = [bench.ask("b" * 30), bench.ask("c" * 30)]  # 50 rows each
    await bench.at(2)

    assert bench.engine.queue_rows == 100
    assert isinstance(await outcome(bench.ask("d")), QueueFullError)
    await asyncio.gather(running, *waiting)
    bench.assert_empty()


@on_bench(limited=limits(batch_rows=50, queue_rows=50))
async def test_an_input_larger_than_every_limit_is_answered_alone(bench: Bench):
    running = bench.ask("a")
    await bench.at(1)

    await asyncio.gather(running, bench.ask("L" * 200, "b"))

    assert bench.ran == [["a"], ["L" * 200], ["b"]]


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
    late = bench.ask("b")
    await bench.at(2)
    [_, entry] = bench.engine._in_flight.values()
    entry.deadline = 5  # as if the loop had been too busy to tell the caller

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
    assert str(error) == "inputs[1]: input is empty: send some text"
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


@pytest.mark.parametrize("count", [1, 32])
def test_a_full_batch_budget_is_used(count: int):
    async def main(loop: VirtualLoop) -> None:
        bench = Bench(loop, limited=limits(batch_rows=22 * count))
        running = bench.ask("x")
        await bench.at(1)
        await asyncio.gather(running, *(bench.ask(f"{n:02d}") for n in range(64)))
        assert {len(batch) for batch in bench.ran[1:]} == {count}
        await bench.engine.drain(0)

    run(main)
