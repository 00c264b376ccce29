"""Throughput and latency of the server, against what users would run instead.

    python -m benchmarks.serving --data FOLDER --json OUT

Contenders, each a process of its own on 127.0.0.1, with the same base model, adapter values and
prompts: `dalorra serve` with and without its prefix cache; FastAPI and PEFT, which answers a
request with M plain LoRA passes one after the other; LitServe, which batches around the same
loop. Clients ask again as soon as they are answered. They take turns on the contenders, cell by
cell, and whoever is not measured is suspended.

No input is asked twice: a counter stands in front of the text, so that identical inputs are never
answered together and the prefix cache shares the head of the template only. Every cell is bounded
in time, so slow contenders answer fewer requests; those that are not answered in `--patience`
seconds (twice that for LitServe) are given up and count in the percentiles with the time they had
waited, a lower bound. Throughput is the answers over the time up to the last of them.
"""

import argparse
import random
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks.report import arguments, print_table, read_json, save_figure, write_json
from benchmarks.serving_load.client import Cell, Outcome, numbered
from benchmarks.serving_load.contenders import (
    FASTAPI,
    LITSERVE,
    NAMES,
    OURS,
    OURS_UNCACHED,
    BenchmarkError,
    Client,
    Contender,
    Setup,
    started,
)
from benchmarks.serving_load.inputs import texts_of_length
from benchmarks.serving_load.overhead import overhead
from benchmarks.serving_load.summary import summarise
from dalorra.adapter.directory import bundled_adapter
from dalorra.adapter.export import export_bank
from dalorra.predictor import Predictor
from training.tasks import load_examples

LONG_TEXTS = 100
SAME_ADAPTER = 0.2  # the bank's head is sampled in the loop and integrated in ours
COLOURS = {FASTAPI: "#666666", LITSERVE: "#E69F00", OURS_UNCACHED: "#56B4E9", OURS: "#D55E00"}
Outcomes = dict[tuple[str, int, str], list[Outcome]]


def main() -> None:
    """Runs the benchmark and writes its JSON and figure."""
    options = _options()
    if options.render:
        lines = read_json(options.json)
        _figure([x for x in lines if x["measure"] == "load"], options.json.with_suffix(".png"))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end, too
    began = perf_counter()
    predictor = Predictor.load(
        options.adapter, options.base_model, device=options.device, dtype=options.dtype
    )
    inputs = _inputs(predictor, options.data, options.tokens)
    with tempfile.TemporaryDirectory(prefix="dalorra-serving-") as scratch:
        setup = Setup(
            adapter=options.adapter,
            loras=export_bank(options.adapter, Path(scratch) / "loras"),
            base_model=options.base_model or predictor.card.model,
            device=options.device,
            dtype=options.dtype,
            litserve_batch=options.litserve_batch,
            logs=Path(scratch),
        )
        with started(options.contenders, setup) as contenders:
            gaps = _agreement(predictor, contenders, inputs)
            added = list(_overheads(predictor, contenders, inputs, options))
            outcomes = _measure(contenders, inputs, options, began)
    context = {
        "samples": predictor.samples,
        "adapter_digest": predictor.card.digest,
        "dtype": str(predictor.dtype),
        "uvloop": find_spec("uvloop") is not None,
    }
    cells = [
        {
            "measure": "load",
            "contender": contender,
            "input": kind,
            "clients": clients,
            **summarise(rounds, outcomes.get((kind, clients, FASTAPI))),
            "probability_gap": gaps[contender],
            "litserve_batch": options.litserve_batch,
            **context,
        }
        for (kind, clients, contender), rounds in outcomes.items()
    ]
    added = [{**line, **context} for line in added]
    columns = ("input", "clients", "contender", "answered", "given_up", "requests_per_s")
    print_table(
        "Load",
        [_readable(cell) for cell in cells],
        (*columns, "p50_ms", "p95_ms", "p99_ms", "ratio_to_fastapi"),
    )
    print_table("One client", added, ("input", "bare_ms", "served_ms", "overhead_ms", "rest_ms"))
    write_json(options.json, [*cells, *added])
    _figure(cells, options.json.with_suffix(".png"))


def _options() -> argparse.Namespace:
    parser = arguments(__doc__, "serving")
    parser.add_argument("--adapter", type=Path, default=bundled_adapter())
    parser.add_argument("--base-model", help="the adapter's own")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--data", type=Path, help="folder with sst2/validation.jsonl; the hub")
    parser.add_argument("--contenders", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--tokens", type=int, default=200, help="of the long inputs; 0: none")
    parser.add_argument("--seconds", type=float, default=2, help="of sending, per cell")
    parser.add_argument("--least", type=int, default=2, help="answers, if patience allows")
    parser.add_argument("--most", type=int, default=2000, help="requests of a cell")
    parser.add_argument("--patience", type=float, default=6, help="seconds of a cell, at most")
    parser.add_argument("--rounds", type=int, default=3, help="at most; see --minutes")
    parser.add_argument(
        "--minutes", type=float, default=7.5, help="no round starts that ends later"
    )
    parser.add_argument("--repeats", type=int, default=25, help="pairs for the overhead")
    parser.add_argument("--litserve-batch", type=int, default=4, help="more for a GPU")
    parser.add_argument(
        "--render", action="store_true", help="draw the JSON again, measure nothing"
    )
    return parser.parse_args()


def _inputs(predictor: Predictor, data: Path | None, tokens: int) -> dict[str, list[str]]:
    """Bodies of the inputs by kind; every contender gets the same ones in the same order."""
    examples = load_examples("sst2", "validation", data)
    sentences = [example.texts["sentence"].strip() for example in examples]
    random.Random(0).shuffle(sentences)
    kinds = {"sst2": sentences}
    if tokens:
        kinds[f"{tokens} tokens"] = texts_of_length(
            predictor.tokenizer, sentences, tokens, LONG_TEXTS
        )
    return kinds


def _agreement(
    predictor: Predictor, contenders: Sequence[Contender], inputs: dict[str, list[str]]
) -> dict[str, float]:
    """Largest difference of a probability from the bare forward; also warms the contenders up.

    Raises:
        BenchmarkError: a contender computes something else.
    """
    gaps = {}
    for contender in contenders:
        gap = 0.0
        with contender.awake():
            for bodies in inputs.values():
                for body in bodies[:2]:
                    text = numbered(body, 999_999)
                    (expected,) = predictor.predict([predictor.encode(text)])
                    answer = contender.ask(text)["probabilities"]
                    gap = max(gap, *(abs(answer[k] - p) for k, p in expected.probabilities.items()))
        if gap > SAME_ADAPTER:
            raise BenchmarkError(f"{contender.name} is {gap:.2f} off the bare forward")
        gaps[contender.name] = gap
    return gaps


def _overheads(
    predictor: Predictor,
    contenders: Sequence[Contender],
    inputs: dict[str, list[str]],
    options: argparse.Namespace,
) -> Iterator[dict[str, Any]]:
    """Our server without its prefix cache against the bare forward, which has none either."""
    for contender in contenders:
        if contender.name == OURS_UNCACHED:
            with contender.awake():
                for kind, bodies in inputs.items():
                    added = overhead(predictor, contender.url, bodies, options.repeats)
                    yield {
                        "measure": "overhead",
                        "contender": OURS_UNCACHED,
                        "input": kind,
                        **added,
                    }


def _measure(
    contenders: Sequence[Contender],
    inputs: dict[str, list[str]],
    options: argparse.Namespace,
    began: float,
) -> Outcomes:
    """As many rounds over all cells as the time allows, at least one."""
    outcomes: Outcomes = defaultdict(list)
    longest = 0.0
    client = Client()
    try:
        for turn in range(options.rounds):
            round_began = perf_counter()
            if turn and round_began - began + longest > 60 * options.minutes:
                break
            for index, (kind, clients) in enumerate(
                (k, c) for k in inputs for c in options.clients
            ):
                first = (turn * len(inputs) * len(options.clients) + index) * options.most
                for contender in contenders:
                    cell = Cell(
                        url=contender.url,
                        texts=inputs[kind],
                        first=first,
                        clients=clients,
                        seconds=options.seconds,
                        least=options.least,
                        most=options.most,
                        patience=_patience(contender.name, options.patience),
                        says_until=contender.says_until,
                    )
                    with contender.awake():
                        outcomes[kind, clients, contender.name].append(client.run(cell))
            longest = max(longest, perf_counter() - round_began)
    finally:
        client.stop()
    return outcomes


def _patience(contender: str, seconds: float) -> float:
    """Twice as long for LitServe, whose first answer comes after a whole batch."""
    return 2 * seconds if contender == LITSERVE else seconds


def _readable(cell: dict[str, Any]) -> dict[str, Any]:
    """Whole milliseconds where there are many of them."""
    return {
        key: round(value) if key.endswith("_ms") and value and value >= 100 else value
        for key, value in cell.items()
    }


def _figure(cells: Sequence[dict[str, Any]], path: Path) -> None:
    kinds = list(dict.fromkeys(cell["input"] for cell in cells))
    figure = Figure(figsize=(4.4 * len(kinds), 6.4), layout="constrained")
    panels = figure.subplots(2, len(kinds), squeeze=False)
    for column, kind in enumerate(kinds):
        for axes, key in zip(panels[:, column], ("requests_per_s", "p50_ms"), strict=True):
            for name, colour in COLOURS.items():
                own = [c for c in cells if (c["input"], c["contender"]) == (kind, name) and c[key]]
                if own:
                    axes.plot(
                        [c["clients"] for c in own],
                        [c[key] for c in own],
                        color=colour,
                        marker="o",
                        markersize=4,
                        label=name,
                    )
            clients = sorted({cell["clients"] for cell in cells})
            axes.set(xscale="log", yscale="log", xlabel="concurrent clients")
            axes.set_xticks(clients, [str(number) for number in clients])
            axes.minorticks_off()
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
        panels[0, column].set_title(kind)
    panels[0, 0].set_ylabel("requests per second")
    panels[1, 0].set_ylabel("median latency, ms")
    save_figure(figure, path)


if __name__ == "__main__":
    main()
