"""An engine under more load than it can take, on a virtual clock: who asks, and what becomes of it.

Open loop: clients come whether or not those before them were answered, as strangers do.
"""

import asyncio
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from dalorra.prompts import Prompt
from dalorra.questions import Asked, Question
from service.engine import Engine, Limits
from service.errors import BatchTooLargeError, DeadlineError, QueueFullError
from tests.engine_bench import Journal
from tests.fakes import FakePredictor, FakeQuestions, limits
from tests.virtual_time import VirtualLoop, VirtualThread, run

TOKENIZER_SECONDS = 1e-4  # of one input
SHELL_ROWS = 20  # of an empty input: the cue under each sample
NOUL_TOKENS = 7  # of a question beside its instructions


@dataclass(frozen=True)
class Machine:
    """What the model runs on.

    Attributes:
        rows_per_second: at a moment.
        price: rows that could be computed while a forward begins.
        batch_rows: of a forward, at most.
        noise: standard deviation of the logarithm of a batch's time.
    """

    rows_per_second: Callable[[float], float]
    price: float = 40.0
    batch_rows: int = 2_048
    noise: float = 0.05

    def room(self, within: float, at: float = 0.0) -> float:
        """Rows of the largest batch that a quarter of the deadline is enough for."""
        rows = self.rows_per_second(at) * within / 4 - self.price
        return min(self.batch_rows, max(rows, 1.0))

    def capacity(self, within: float, at: float = 0.0) -> float:
        """Rows per second in such batches."""
        rows = self.room(within, at)
        return self.rows_per_second(at) * rows / (rows + self.price)


@dataclass(frozen=True)
class Crowd:
    """Clients with one key.

    Attributes:
        rows_per_second: that they ask for.
        characters: lengths of the inputs, all equally frequent.
        inputs: of a request.
        state: characters that all inputs of a request are questions about; 0: they are texts.
        key: whose share it counts against.
        comes, goes: when the first and the last of them arrive.
    """

    rows_per_second: float
    characters: Sequence[int] = (20, 60, 120, 240)
    inputs: int = 1
    state: int = 0
    key: Hashable | None = None
    comes: float = 0.0
    goes: float = math.inf

    @property
    def request_rows(self) -> float:
        """Of a request, on average."""
        mean = sum(self.characters) / len(self.characters)
        return self.state + self.inputs * (mean + SHELL_ROWS)


@dataclass
class Outcome:
    """What became of a request."""

    crowd: Crowd
    rows: int
    arrived: float
    ended: float
    how: str
    retry_after: int | None = None


@dataclass
class Record:
    """What became of all requests, and what waited."""

    outcomes: list[Outcome] = field(default_factory=list)
    most_rows_waiting: int = 0

    def select(
        self, how: str | None = None, crowd: Crowd | None = None, since: float = 0.0
    ) -> list[Outcome]:
        return [
            one
            for one in self.outcomes
            if (how is None or one.how == how)
            and (crowd is None or one.crowd is crowd)
            and one.arrived >= since
        ]

    def goodput(self, begin: float, end: float, crowd: Crowd | None = None) -> float:
        """Rows per second that were answered in this time, from one batch's end to another's."""
        answered = sorted((one.ended, one.rows) for one in self.select("answered", crowd))
        ends = [ended for ended, _ in answered]
        first, last = bisect_right(ends, begin), bisect_right(ends, end)
        seconds = ends[last - 1] - (ends[first - 1] if first else 0.0)
        return sum(rows for _, rows in answered[first:last]) / seconds


def play(
    machine: Machine,
    crowds: Sequence[Crowd],
    *,
    within: float,
    until: float,
    measured: bool = True,
    limited: Limits | None = None,
    seed: int = 0,
) -> Record:
    """Lets the crowds come for `until` seconds, and waits for the last answer."""

    async def main(loop: VirtualLoop) -> Record:
        chance = random.Random(seed)
        predictor = FakePredictor(batch_rows=machine.batch_rows, examples=3)
        questions = FakeQuestions(batch_rows=machine.batch_rows)

        def cost(*arguments: Sequence[Prompt]) -> float:
            prompts = arguments[-1]
            states = {prompt.state_ids for prompt in prompts}
            rows = sum(predictor.packed_rows(prompt) - prompt.shared for prompt in prompts)
            rows += sum(map(len, states))
            noise = math.exp(chance.gauss(0.0, machine.noise))
            return (rows + machine.price) / machine.rows_per_second(loop.now) * noise

        engine = Engine(
            model=VirtualThread(loop, cost),
            tokenizer=VirtualThread(loop, lambda entries: TOKENIZER_SECONDS * len(entries)),
            limits=replace(limited or limits(queue_requests=2_048), batch_seconds=within / 4),
            observer=Journal(),
        )
        if measured:
            await engine.measure(predictor)
        engine.start()
        record, numbers = Record(), count()

        async def ask(crowd: Crowd) -> None:
            lengths = chance.choices(crowd.characters, k=crowd.inputs)
            texts = [f"{next(numbers):0{length}d}"[-length:] for length in lengths]
            state = f"{next(numbers):0{crowd.state}d}" if crowd.state else ""
            asked = (
                [(questions, Asked(state, _question(text))) for text in texts]
                if state
                else [(predictor, text) for text in texts]
            )
            rows = len(state) + sum(length + SHELL_ROWS for length in lengths)
            outcome = Outcome(crowd, rows, loop.now, 0.0, "answered")
            try:
                await engine.predict_each(asked, within=within, client=crowd.key)
            except (QueueFullError, BatchTooLargeError, DeadlineError) as error:
                outcome.how = type(error).__name__
                outcome.retry_after = error.retry_after
            outcome.ended = loop.now
            if outcome.how == "QueueFullError" and outcome.ended > outcome.arrived:
                outcome.how = "dropped"
            record.outcomes.append(outcome)
            record.most_rows_waiting = max(record.most_rows_waiting, engine.queue_rows)

        async def arrive(crowd: Crowd) -> None:
            await asyncio.sleep(crowd.comes)
            pace = crowd.rows_per_second / crowd.request_rows
            async with asyncio.TaskGroup() as requests:
                while loop.now < min(until, crowd.goes):
                    requests.create_task(ask(crowd))
                    await asyncio.sleep(chance.expovariate(pace))

        await asyncio.gather(*map(arrive, crowds))
        await engine.drain(0)
        return record

    return run(main)


def _question(text: str) -> Question:
    """Takes as many rows beside its state as this input."""
    return Question.noul(text[NOUL_TOKENS:])
