"""The load: so many clients, each of which asks again as soon as it is answered.

    python -m benchmarks.serving_load.client

reads one `Cell` as JSON per line and writes one `Outcome` per line, so that the load comes from a
process of its own, which holds no model.
"""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from time import perf_counter

import httpx


@dataclass(frozen=True)
class Cell:
    """One measurement of one server.

    Attributes:
        url: what is asked, with POST.
        texts: bodies of the inputs, taken in turn.
        first: the counter in front of the first input; no two inputs are the same.
        clients: requests that are under way at any time.
        seconds: new requests are sent for that long,
        least: and on until so many are answered,
        most: but never more than so many.
        patience: seconds after which whatever is not answered is given up.
        says_until: whether a request says when it will be given up. Our server sees for itself
            that nobody waits any more; the others would work on, into the next measurement.
    """

    url: str
    texts: Sequence[str]
    first: int
    clients: int
    seconds: float
    least: int
    most: int
    patience: float
    says_until: bool = False


@dataclass
class Outcome:
    """What the clients saw.

    Attributes:
        latencies_ms: of the answered requests.
        waited_ms: how long those had waited that were given up.
        seconds: from the first request to the last answer.
    """

    latencies_ms: list[float] = field(default_factory=list)
    waited_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def requests_per_s(self) -> float:
        """Answers in the time up to the last of them."""
        return len(self.latencies_ms) / self.seconds if self.latencies_ms else 0.0


def numbered(body: str, number: int) -> str:
    """A text that no other request has: in front, so that no two share more than the template."""
    return f"{number:06d} {body}"


async def load(cell: Cell, transport: httpx.AsyncBaseTransport | None = None) -> Outcome:
    """Puts a server under the load of `cell`.

    Raises:
        httpx.HTTPError: the server refused a request or went away.
    """
    limits = httpx.Limits(max_connections=cell.clients, max_keepalive_connections=cell.clients)
    async with httpx.AsyncClient(
        limits=limits, timeout=2 * cell.patience, trust_env=False, transport=transport
    ) as http:
        run = _Run(cell, http)
        clients = [asyncio.create_task(run.client()) for _ in range(cell.clients)]
        try:
            finished, _ = await asyncio.wait(
                clients, timeout=cell.patience, return_when=asyncio.FIRST_EXCEPTION
            )
            for client in finished:
                client.result()
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
    return run.outcome


class _Run:
    def __init__(self, cell: Cell, http: httpx.AsyncClient) -> None:
        self.outcome = Outcome()
        self._cell = cell
        self._http = http
        self._sent = 0
        self._started = perf_counter()
        self._until = time.time() + cell.patience

    async def client(self) -> None:
        while self._goes_on():
            number = self._cell.first + self._sent
            self._sent += 1
            sent = perf_counter()
            try:
                response = await self._http.post(self._cell.url, json=self._body(number))
            except asyncio.CancelledError:
                self.outcome.waited_ms.append(1e3 * (perf_counter() - sent))
                raise
            answered = perf_counter()
            response.raise_for_status()
            self.outcome.latencies_ms.append(1e3 * (answered - sent))
            self.outcome.seconds = answered - self._started

    def _goes_on(self) -> bool:
        in_time = perf_counter() - self._started < self._cell.seconds
        too_few = len(self.outcome.latencies_ms) < self._cell.least
        return (in_time or too_few) and self._sent < self._cell.most

    def _body(self, number: int) -> dict[str, object]:
        text = numbered(self._cell.texts[number % len(self._cell.texts)], number)
        return {"input": text} | ({"until": self._until} if self._cell.says_until else {})


def main() -> None:
    """Runs the cells that come in, one after the other."""
    for line in sys.stdin:
        outcome = asyncio.run(load(Cell(**json.loads(line))))
        print(json.dumps(asdict(outcome)), flush=True)


if __name__ == "__main__":
    main()
