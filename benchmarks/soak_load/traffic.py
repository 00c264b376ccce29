"""Strangers who ask a server: each has a key and a pace, and none waits for another's answer."""

import asyncio
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import httpx

_WORDS = [
    *("film", "plot", "cast", "scene", "ending", "sound", "camera", "story", "pace", "joke"),
    *("the", "a", "this", "that", "was", "is", "felt", "seemed", "looked", "never", "always"),
    *("hardly", "almost", "quite", "dull", "warm", "slow", "sharp", "lost", "fine", "bright"),
    *("broken", "tender", "loud", "empty", "clever", "flat", "odd", "and", "but", "though"),
]
_BATCHES = (2, 4, 8, 16, 32)  # inputs of a batch request, all equally frequent
_PAUSE = 0.2  # seconds before a client of the closed loop that was refused asks again
_PATIENCE = 1.5  # a client waits that many deadlines, so that whoever is late is seen to be


@dataclass(frozen=True)
class Client:
    """Requests with one key.

    Attributes:
        name: in the results.
        key: bearer key.
        inputs_per_s: that it asks for.
    """

    name: str
    key: str
    inputs_per_s: float


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    Attributes:
        client: whose it was.
        inputs: it had.
        ended: seconds since the traffic began.
        seconds: it took.
        status: of the response; 0 where there was none.
        error_type: of a response that is an error; the kind of exception where there was none.
    """

    client: str
    inputs: int
    ended: float
    seconds: float
    status: int
    error_type: str


class Texts:
    """Texts of mixed lengths, no two of which begin alike; the same ones for a seed.

    Nineteen of twenty have 5 to 150 words, most of them few; the others up to `longest`.
    """

    def __init__(self, seed: int, longest: int) -> None:
        self._chance = random.Random(seed)
        self._longest = longest
        self._number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """One more."""
        chance = self._chance
        low, high = (5, 150) if chance.random() < 0.95 else (150, max(self._longest, 151))
        words = round(math.exp(chance.uniform(math.log(low), math.log(high))))
        self._number += 1
        return f"{self._number:07d} " + " ".join(chance.choices(_WORDS, k=words))


@dataclass
class Traffic:
    """Asks a server.

    Attributes:
        url: of the server.
        deadline: seconds that an answer may take there.
        texts: what is asked.
        batches: share of the requests that have several inputs.
        seed: of arrivals and batches.
        outcomes: of the requests that have ended, in the order of their ends.
    """

    url: str
    deadline: float
    texts: Texts
    batches: float
    seed: int
    outcomes: list[Outcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self._began = perf_counter()

    @property
    def now(self) -> float:
        """Seconds since it began."""
        return perf_counter() - self._began

    async def saturate(self, key: str, inputs: int, seconds: float) -> float:
        """Closed loop: keeps about so many inputs waiting.

        Returns:
            Inputs that were answered per second, those of the first quarter left out.
        """
        until = self.now + seconds
        begin = self.now + seconds / 4
        client = Client("closed loop", key, 0.0)
        requests = max(round(inputs / self._mean_inputs), 1)

        async def keep_asking(http: httpx.AsyncClient) -> None:
            while self.now < until:
                if (await self._ask(http, client)).status != 200:
                    await asyncio.sleep(_PAUSE)

        async with self._http() as http:
            await asyncio.gather(*(keep_asking(http) for _ in range(requests)))
        answered = [
            one.inputs
            for one in self.outcomes
            if one.client == client.name and one.status == 200 and begin <= one.ended < until
        ]
        return sum(answered) / (until - begin)

    async def flood(self, clients: Sequence[Client], seconds: float) -> None:
        """Open loop: requests come at random moments, and nobody waits for anybody."""
        async with self._http() as http:
            await asyncio.gather(*(self._arrivals(http, client, seconds) for client in clients))

    @property
    def _mean_inputs(self) -> float:
        """Of a request."""
        return 1.0 - self.batches + self.batches * sum(_BATCHES) / len(_BATCHES)

    async def _arrivals(self, http: httpx.AsyncClient, client: Client, seconds: float) -> None:
        requests_per_s = client.inputs_per_s / self._mean_inputs
        due, until = self.now, self.now + seconds
        async with asyncio.TaskGroup() as requests:
            while True:
                due += self._chance.expovariate(requests_per_s)
                if due > until:
                    break
                await asyncio.sleep(due - self.now)  # those that are due already come at once
                requests.create_task(self._ask(http, client))

    async def _ask(self, http: httpx.AsyncClient, client: Client) -> Outcome:
        several = self._chance.random() < self.batches
        inputs = self._chance.choice(_BATCHES) if several else 1
        texts = [next(self.texts) for _ in range(inputs)]
        path, body = ("/predict/batch", {"inputs": texts}) if several else ("/predict", None)
        asked = perf_counter()
        status, error_type = 0, ""
        try:
            response = await http.post(
                self.url + path,
                json=body or {"input": texts[0]},
                headers={"Authorization": f"Bearer {client.key}"},
            )
            status = response.status_code
            if status != 200:
                error_type = response.json()["error_type"]
        except (httpx.HTTPError, ValueError, KeyError) as error:
            error_type = type(error).__name__
        outcome = Outcome(
            client=client.name,
            inputs=inputs,
            ended=self.now,
            seconds=perf_counter() - asked,
            status=status,
            error_type=error_type,
        )
        self.outcomes.append(outcome)
        return outcome

    def _http(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        return httpx.AsyncClient(limits=limits, timeout=_PATIENCE * self.deadline, trust_env=False)
