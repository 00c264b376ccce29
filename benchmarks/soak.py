"""Soaks a server in more work than it can do, for as long as you like.

    python -m benchmarks.soak --minutes 60 --times 2 --json OUT

A server of its own, with the bundled adapter; its capacity is measured first, by clients that ask
again as soon as they are answered, then three keys together ask for `--times` as much, at random
moments and whether or not they are answered: one for a tenth of the capacity, the others for three
quarters and a quarter of the rest. Lengths are mixed and some requests are batches; no input is
asked twice. Written are windows of time, what each key got, and the whole: how much of the capacity
was answered, how fast refusals were, whether an accepted request timed out, whether one was lost
(the clients' count against the server's own), and the memory.

`--attacks` adds connections that say nonsense or never end what they began.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.report import arguments, print_table, read_json, save_figure, write_json
from benchmarks.soak_load.attacks import attack
from benchmarks.soak_load.server import Reading, Server, read
from benchmarks.soak_load.summary import Capacity, in_all, of_client, window
from benchmarks.soak_load.traffic import Client, Texts, Traffic

MODEST, BUSY, GREEDY = "modest", "busy", "greedy"
_KEYS = {name: f"soak-key-of-the-{name}-client" for name in (MODEST, BUSY, GREEDY)}
_WAITING = 64  # inputs that wait while the capacity is measured


def main() -> None:
    """Soaks, and writes JSON and figure."""
    options = _options()
    if options.render:
        _figure(read_json(options.json), options.json.with_suffix(".png"))
        return
    settings = {
        "api_keys": ",".join(_KEYS.values()),
        "request_timeout_seconds": options.deadline,
    }
    flags = [flag for name, value in settings.items() for flag in ("--set", f"{name}={value}")]
    with (
        tempfile.TemporaryDirectory(prefix="dalorra-soak-") as scratch,
        Server([*flags, *options.serve], Path(scratch) / "server.log") as server,
    ):
        lines = asyncio.run(_soak(server, options))
    write_json(options.json, lines)
    whole, clients = lines[0], [line for line in lines if line["measure"] == "client"]
    columns = ("of_capacity", "rows_of_capacity", "p50_s", "p99_s", "longest_s", "timed_out")
    print_table("Soak", [whole], (*columns, "refusal_p99_ms", "lost", "memory_grown_mib"))
    print_table("Keys", clients, ("client", *list(clients[0])[2:]))
    _figure(lines, options.json.with_suffix(".png"))


def _options() -> argparse.Namespace:
    parser = arguments(__doc__, "soak")
    parser.add_argument("--minutes", type=float, default=60.0, help="of more work than fits")
    parser.add_argument("--times", type=float, default=2.0, help="the capacity")
    parser.add_argument("--deadline", type=float, default=60.0, help="seconds for an answer")
    parser.add_argument("--measure", type=float, default=60.0, help="seconds for the capacity")
    parser.add_argument("--window", type=float, default=10.0, help="seconds of a line")
    parser.add_argument("--batches", type=float, default=0.1, help="share of the requests")
    parser.add_argument("--longest", type=int, default=600, help="words of an input, at most")
    parser.add_argument("--attacks", type=float, default=0.0, help="connections per second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--render", action="store_true", help="draw the JSON again, measure nothing"
    )
    parser.add_argument("serve", nargs="*", help="after --: options for dalorra serve")
    return parser.parse_args()


async def _soak(server: Server, options: argparse.Namespace) -> list[dict[str, Any]]:
    traffic = Traffic(
        url=server.url,
        deadline=options.deadline,
        texts=Texts(options.seed, options.longest),
        batches=options.batches,
        seed=options.seed,
    )
    capacity = await _capacity(server, traffic, options.measure)
    rest = options.times - 0.1
    shares = {MODEST: 0.1, BUSY: rest / 4, GREEDY: 3 * rest / 4}
    clients = [
        Client(name, _KEYS[name], share * capacity.inputs_per_s) for name, share in shares.items()
    ]
    traffic.outcomes.clear()
    seconds = 60.0 * options.minutes
    readings = [await read(server.url, traffic.now)]
    reader = asyncio.create_task(_keep_reading(server, traffic, readings, options.window))
    attacks = asyncio.create_task(attack(server.url, options.attacks, seconds, options.seed))
    await traffic.flood(clients, seconds)
    disconnected = await attacks
    reader.cancel()
    await asyncio.wait([reader])
    if not reader.cancelled():
        reader.result()  # it failed: the server did not say how it is
    last = await read(server.url, traffic.now)
    after = await _capacity(server, replace(traffic, outcomes=[]), options.measure)
    whole = {
        **in_all(
            traffic.outcomes,
            [*readings, last],
            capacity=capacity,
            deadline=options.deadline,
            seconds=seconds,
        ),
        "capacity_after_inputs_per_s": after.inputs_per_s,
        "capacity_after_rows_per_s": after.rows_per_s,
        "attacks_per_s": options.attacks,
        "attackers_disconnected": disconnected,
        "times": options.times,
        "seed": options.seed,
    }
    windows = [window(traffic.outcomes, begin, end, capacity) for begin, end in pairwise(readings)]
    return [whole, *(of_client(client, traffic.outcomes, seconds) for client in clients), *windows]


async def _capacity(server: Server, traffic: Traffic, seconds: float) -> Capacity:
    """Inputs and rows per second in a closed loop, each without its first quarter."""
    saturated = asyncio.create_task(traffic.saturate(_KEYS[GREEDY], _WAITING, seconds))
    await asyncio.sleep(seconds / 4)
    begin = await read(server.url, traffic.now)
    await asyncio.sleep(seconds * 3 / 4)
    end = await read(server.url, traffic.now)
    return Capacity(await saturated, (end.rows - begin.rows) / (end.at - begin.at))


async def _keep_reading(
    server: Server, traffic: Traffic, readings: list[Reading], every: float
) -> None:
    while True:
        await asyncio.sleep(every)
        readings.append(await read(server.url, traffic.now))


def _figure(lines: Sequence[dict[str, Any]], path: Path) -> None:
    whole, windows = lines[0], [line for line in lines if line["measure"] == "window"]
    began = windows[0]["begin_s"]
    minutes = [(line["begin_s"] + line["seconds"] - began) / 60 for line in windows]
    figure = Figure(figsize=(7.2, 6.6), layout="constrained")
    rate, latency, memory = figure.subplots(3, 1, sharex=True)

    def draw(axes: Any, key: str, label: str, colour: str) -> None:
        axes.plot(minutes, [line[key] for line in windows], color=colour, label=label)

    draw(rate, "answered_inputs_per_s", "answered", "#D55E00")
    rate.axhline(whole["capacity_inputs_per_s"], color="#666666", linestyle="--", label="capacity")
    rate.set(ylabel="inputs per second", ylim=(0, None))
    draw(latency, "p50_s", "median", "#56B4E9")
    draw(latency, "p99_s", "99th percentile", "#0072B2")
    latency.axhline(whole["deadline_s"], color="#999999", linestyle=":", label="deadline")
    latency.set(ylabel="seconds for an answer", ylim=(0, None))
    draw(memory, "memory_mib", "resident memory", "#009E73")
    draw(memory, "cache_mib", "prefix cache", "#E69F00")
    memory.set(ylabel="MiB", xlabel="minutes", ylim=(0, None))
    save_figure(figure, path)


if __name__ == "__main__":
    main()
