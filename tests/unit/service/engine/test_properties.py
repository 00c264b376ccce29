"""Whatever arrives, leaves, fails or expires: nothing is lost, answered twice, mixed up or kept.

Of two adapters, each client asks one.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from dalorra.errors import InputError
from service.engine import Engine
from service.errors import (
    BatchTooLargeError,
    DeadlineError,
    DrainingError,
    InferenceError,
    QueueFullError,
)
from tests.engine_bench import Journal, assert_empty, text_of
from tests.fakes import FakePredictor, expected_prediction, limits
from tests.virtual_time import VirtualLoop, VirtualThread, run

# Few and short, so that equal inputs often meet; "" is invalid, "☠" breaks its forward.
TEXTS = ["a", "b", "cc", "d" * 40, "e" * 40, "f" * 250, "", "☠"]


@dataclass(frozen=True)
class Client:
    """Arrives, asks, and leaves after its patience is over (never, if None)."""

    arrives: float
    texts: list[str]
    within: float
    patience: float | None
    asks: int


times = st.floats(0, 60, allow_nan=False).map(lambda seconds: round(seconds, 1))
clients = st.builds(
    Client,
    arrives=times,
    texts=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=5),
    within=times.map(lambda seconds: seconds + 0.1),
    patience=st.none() | times,
    asks=st.integers(0, 1),
)


def two_adapters(batch_rows: int) -> list[FakePredictor]:
    """What one finds positive the other finds negative."""
    labels = ("positive", "negative")
    return [FakePredictor(label=label, batch_rows=batch_rows) for label in labels]


async def live(client: Client, engine: Engine, adapters: Sequence[FakePredictor]) -> str:
    """One client's life; how it ended."""
    await asyncio.sleep(client.arrives)
    try:
        async with asyncio.timeout(client.patience):
            adapter = adapters[client.asks]
            answers = await engine.predict(adapter, client.texts, within=client.within)
    except TimeoutError:
        return "left"
    except (
        InputError,
        InferenceError,
        BatchTooLargeError,
        DeadlineError,
        QueueFullError,
        DrainingError,
    ) as error:
        if isinstance(error, InputError):
            assert "" in client.texts
        if isinstance(error, InferenceError):
            assert "☠" in client.texts
        return type(error).__name__
    assert [one.prediction for one in answers] == [
        expected_prediction(adapter.encode(text), adapter.label) for text in client.texts
    ]
    return "answered"


@settings(max_examples=300, deadline=None)
@given(
    st.lists(clients, min_size=1, max_size=30),
    st.integers(1, 12),
    st.integers(20, 1_000),
    st.integers(20, 600),
    st.none() | times,
)
def test_every_client_gets_exactly_one_honest_end(
    crowd: list[Client],
    queue_requests: int,
    queue_rows: int,
    batch_rows: int,
    drained_at: float | None,
):
    async def main(loop: VirtualLoop) -> None:
        adapters = two_adapters(batch_rows)
        engine = Engine(
            model=VirtualThread(loop, lambda predictor, prompts: 1 + len(prompts) / 10),
            tokenizer=VirtualThread(loop, lambda entries: len(entries) / 20),
            limits=limits(queue_requests=queue_requests, queue_rows=queue_rows),
            observer=Journal(),
        )
        engine.start()
        lives = [loop.create_task(live(client, engine, adapters)) for client in crowd]
        if drained_at is not None:
            await asyncio.sleep(drained_at)
            await engine.drain(5)

        ends = Counter([await one for one in lives])

        assert ends.total() == len(crowd)
        assert engine.alive == (drained_at is None)
        assert (engine.queue_requests, engine.queue_rows) == (0, 0)
        if not any(client.patience is not None for client in crowd):
            assert "left" not in ends
        if drained_at is None:
            assert "DrainingError" not in ends
            await engine.drain(100)
        assert_empty(engine)
        for predictor in adapters:
            for batch in predictor.batches:
                assert len(batch) == 1 or sum(map(predictor.packed_rows, batch)) <= batch_rows
                texts = [text_of(prompt) for prompt in batch]
                assert len(set(texts)) == len(texts), "equal inputs share an entry"

    run(main)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(times, st.integers(1, 250), st.integers(0, 1)), min_size=1, max_size=60))
def test_with_room_and_time_for_all_everyone_is_answered_in_bounded_time(
    arrivals: list[tuple[float, int, int]],
):
    forward = 2.0

    async def main(loop: VirtualLoop) -> None:
        adapters = two_adapters(batch_rows=600)
        engine = Engine(
            model=VirtualThread(loop, lambda predictor, prompts: forward),
            tokenizer=VirtualThread(loop, lambda entries: 0.0),
            limits=limits(),
            observer=Journal(),
        )
        engine.start()

        async def ask(number: int, arrives: float, length: int, asks: int) -> None:
            await asyncio.sleep(arrives)
            ahead = engine.queue_requests
            asked = loop.now
            text = f"{number:03d}" + "x" * length
            await engine.predict(adapters[asks], [text], within=1e6)
            # The running batch, at most one batch for each entry ahead, and its own.
            assert loop.now - asked <= (ahead + 2) * forward + 1e-6

        await asyncio.gather(*(ask(n, *arrival) for n, arrival in enumerate(arrivals)))
        ran = [batch for predictor in adapters for batch in predictor.batches]
        assert sum(map(len, ran)) == len(arrivals)  # each ran once
        await engine.drain(0)

    run(main)
