"""What the engine batches, shares and refuses, on a virtual clock: every time is exact."""

import asyncio

import pytest

from dalorra.prompts import Prompt
from service.errors import QueueFullError
from tests.engine_bench import Bench, on_bench, outcome
from tests.fakes import CUE, expected_prediction, limits
from tests.virtual_time import VirtualLoop, run


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
    assert bench.journal.batches == [(1, 21, 10), (4, 84, 10)]
    bench.assert_empty()


@on_bench()
async def test_an_idle_engine_answers_at_once(bench: Bench):
    await bench.at(1_000)
    await bench.ask("a")

    assert bench.loop.now == 1_010
    assert bench.journal.waits == [0]


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
    assert bench.journal.joined == 4
    assert {task.result()[0].prediction.probability for task in [first, *same]} == {
        first.result()[0].prediction.probability
    }
    await bench.ask("a")  # answered ones are no longer in flight
    assert bench.ran[2:] == [["a"]]


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

    assert len(bench.journal.tokens) == 3


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


@on_bench()
async def test_a_state_has_its_place_once_for_the_questions_of_a_request(bench: Bench):
    def encode(text: str) -> Prompt:
        return Prompt(tuple(map(ord, text)), CUE, shared=48, options=("true", "false"))

    bench.predictor.encode = encode
    running = bench.ask("r" * 60)
    await bench.at(1)
    state, other = "s" * 48, "o" * 48
    asked = bench.ask(state + "a", state + "bc", other + "d", state + "efg")
    await bench.at(2)
    own = (1, 2, 1, 3)
    assert bench.engine.queue_rows == 48 + 48 + sum(own) + 4 * 10 * len(CUE)
    await asyncio.gather(running, asked)
    bench.assert_empty()
    assert bench.journal.batches[1][:2] == (4, 96 + sum(own) + 4 * 10 * len(CUE))


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


@on_bench(limited=limits(queue_rows=50), batch_rows=50)
async def test_an_input_larger_than_every_limit_is_answered_alone(bench: Bench):
    running = bench.ask("a")
    await bench.at(1)

    await asyncio.gather(running, bench.ask("L" * 200, "b"))

    assert bench.ran == [["a"], ["L" * 200], ["b"]]


@pytest.mark.parametrize("count", [1, 32])
def test_a_full_batch_budget_is_used(count: int):
    async def main(loop: VirtualLoop) -> None:
        bench = Bench(loop, batch_rows=22 * count)
        running = bench.ask("x")
        await bench.at(1)
        await asyncio.gather(running, *(bench.ask(f"{n:02d}") for n in range(64)))
        assert {len(batch) for batch in bench.ran[1:]} == {count}
        await bench.engine.drain(0)

    run(main)
