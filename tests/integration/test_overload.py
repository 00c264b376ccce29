"""A real server under more load than it can take, over HTTP; only the model is a fake."""

import asyncio
import math

import pytest

from benchmarks.soak_load.server import read
from benchmarks.soak_load.summary import Capacity, in_all, of_client
from benchmarks.soak_load.traffic import Client, Texts, Traffic
from tests.server_process import start

DEADLINE = 8.0
SECONDS = 16.0


@pytest.mark.slow
@pytest.mark.parametrize("times", [2, 10])
def test_what_is_accepted_is_answered_in_time_and_nothing_is_lost(times: float):
    keys = {name: f"key-of-the-{name}-client" for name in ("modest", "greedy")}
    predictor = {"seconds": 0.02, "row_seconds": 5e-4, "examples": 3, "batch_rows": 512}
    with start(
        "fake",
        predictor=predictor,
        api_keys=",".join(keys.values()),
        request_timeout_seconds=DEADLINE,
    ) as server:
        server.until_ready()
        traffic = Traffic(server.url, DEADLINE, Texts(0, 60), batches=0.05, seed=0)

        async def soak() -> tuple[dict[str, object], list[dict[str, object]]]:
            capacity = Capacity(await traffic.saturate(keys["greedy"], 32, 6.0), math.nan)
            traffic.outcomes.clear()
            clients = [
                Client("modest", keys["modest"], 0.2 * capacity.inputs_per_s),
                Client("greedy", keys["greedy"], (times - 0.2) * capacity.inputs_per_s),
            ]
            before = await read(server.url, traffic.now)
            await traffic.flood(clients, SECONDS)
            after = await read(server.url, traffic.now)
            whole = in_all(
                traffic.outcomes,
                [before, after],
                capacity=capacity,
                deadline=DEADLINE,
                seconds=SECONDS,
            )
            return whole, [of_client(one, traffic.outcomes, SECONDS) for one in clients]

        whole, [modest, greedy] = asyncio.run(soak())

    assert set(whole["ends"]) == {"200", "queue_full"}
    assert whole["lost"] == whole["timed_out"] == 0
    assert whole["longest_s"] < DEADLINE
    assert whole["queue_rows_left"] == 0
    # The machine may have other work; how near these come to what is promised is told by the tests
    # on a virtual clock and by benchmarks.soak.
    assert whole["of_capacity"] > 0.5
    assert whole["refusal_p50_ms"] < 500
    assert modest["answered_share"] > greedy["answered_share"]
