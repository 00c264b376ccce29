"""An engine on a virtual clock, for tests that say when what happens."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from dalorra.prompts import Prompt
from service.engine import Answer, Engine, Limits
from tests.fakes import FakePredictor, limits
from tests.virtual_time import VirtualLoop, VirtualThread, run


@dataclass
class Journal:
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
        batch_rows: int = 2_048,
    ) -> None:
        self.loop = loop
        self.predictor = FakePredictor(fields, batch_rows=batch_rows)
        self.journal = Journal()
        self.engine = Engine(
            model=VirtualThread(loop, lambda predictor, prompts: forward),
            tokenizer=VirtualThread(loop, lambda entries: tokenize),
            limits=limited or limits(),
            observer=self.journal,
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
        assert_empty(self.engine)


def assert_empty(engine: Engine) -> None:
    """Nothing waits, holds a place or is on its way."""
    assert (engine.queue_requests, engine.queue_rows) == (0, 0)
    assert (engine.in_flight, engine.waiting) == (0, 0)


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
