"""What waiting costs: one prediction and one training step, alone and beside a busy neighbour.

    python -m benchmarks.threads --json OUT
    python -m benchmarks.threads --spins 1000 3000 30000 100000     # other bounds, to choose one

Each contender is a process of its own, for OpenMP reads its variables once: with libgomp's own
waiting (`active`), with passive waiting, and as `dalorra.threads.settle` bounds it, where as many
threads compute as cores are free (`dalorra.free_cores`); `--spins` adds other bounds, without that.
They take turns, and the others are asleep meanwhile. The neighbour is a process that computes all
the time, in one thread. A prediction is one sentence by the bundled adapter, a training step one of
`all_tokens` on a mini-batch of short texts.

The goals: idle, the bounded prediction takes at most 1.05 of the active one; busy, at most 1.05 of
the passive one; a training step at most 1.2 of the passive one, idle or busy.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Self

from dalorra.threads import DEFAULT_SPINS, SPINS

POLICY = "OMP_WAIT_POLICY"
BOUNDED = "bounded"
LIBGOMPS_OWN = "300000"
ASLEEP = 0.05  # seconds; the longest active waiting of the one before has ended then
WORKS = ("prediction", "training step")
SENTENCE = "A film of rare charm, with an ending that nobody expects."
TOKENS = 32
GOALS = {
    ("prediction", False): ("over_active", 1.05),
    ("prediction", True): ("over_passive", 1.05),
    ("training step", False): ("over_passive", 1.2),
    ("training step", True): ("over_passive", 1.2),
}


class Contender:
    """A process under its own variables, which answers each line with a time."""

    def __init__(self, variables: dict[str, str], batch: int) -> None:
        others = {k: v for k, v in os.environ.items() if k not in (POLICY, SPINS)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.threads", "--work", str(batch)],
            env=others | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def milliseconds(self, work: str) -> float:
        """Of doing it once."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{work}\n")
        self._process.stdin.flush()
        taken: float = json.loads(self._process.stdout.readline())
        return taken


@contextmanager
def busy_neighbour() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def work(batch: int) -> None:
    """Does in this process what each line of standard input names, and prints how long it took."""
    tasks = {"prediction": _prediction(), "training step": _training_step(batch)}
    for line in sys.stdin:
        began = time.perf_counter()
        tasks[line.strip()]()
        print(1e3 * (time.perf_counter() - began), flush=True)


def _prediction() -> Callable[[], object]:
    from dalorra.predictor import Predictor

    predictor = Predictor.load()
    prompt = predictor.encode(SENTENCE)
    return lambda: predictor.predict([prompt])


def _training_step(batch: int) -> Callable[[], object]:
    import torch

    from benchmarks.prompts import random_prompts
    from benchmarks.training import LABELS, MODULES, objective_loss, training_step
    from dalorra.adapter.layer import attach, lora_config
    from dalorra.base.model import load_base_model
    from dalorra.free_cores import on_free_cores
    from dalorra.posteriors import RankMasks

    model = attach(load_base_model().model, lora_config(8, 16, MODULES, "benchmark"), RankMasks())
    generator = torch.Generator().manual_seed(0)
    prompts = random_prompts([TOKENS] * batch, generator)
    labels = torch.randint(0, len(LABELS), (batch,), generator=generator)
    step = training_step(model, objective_loss(model, "all_tokens", prompts, labels, None))
    return on_free_cores()(step)


def measure(contenders: dict[str, Contender], works: dict[str, int]) -> Iterator[dict[str, Any]]:
    """A line for each contender, work and state of the machine; `works` says how many rounds."""
    for name, rounds in works.items():
        for contender in contenders.values():  # loading, and the first time of each
            contender.milliseconds(name)
        for busy in (False, True):
            taken: dict[str, list[float]] = {contender: [] for contender in contenders}
            with busy_neighbour() if busy else nullcontext():
                for _ in range(rounds):
                    for contender, process in contenders.items():
                        time.sleep(ASLEEP)
                        taken[contender].append(process.milliseconds(name))
            for contender, times in taken.items():
                yield {
                    "work": name,
                    "busy": busy,
                    "waiting": contender,
                    "rounds": rounds,
                    "median_ms": statistics.median(times),
                    "p90_ms": statistics.quantiles(times, n=10)[-1],
                    "over_active": _ratio(times, taken["active"]),
                    "over_passive": _ratio(times, taken["passive"]),
                }


def _ratio(times: list[float], others: list[float]) -> float:
    """The median of the ratios round by round."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def main() -> None:
    """Runs the benchmark, writes its JSON, and says which goals are met."""
    from benchmarks.report import arguments, print_table, write_json

    parser = arguments(__doc__, "threads")
    parser.add_argument("--spins", type=int, nargs="*", default=[], help="other bounds")
    parser.add_argument("--predictions", type=int, default=60, help="rounds")
    parser.add_argument("--steps", type=int, default=10, help="rounds of training steps")
    parser.add_argument("--batch", type=int, default=16, help="texts of a training step")
    options = parser.parse_args()
    variables = {
        "active": {SPINS: LIBGOMPS_OWN},  # said, so that the number of threads stays
        "passive": {POLICY: "passive"},
        BOUNDED: {SPINS: str(DEFAULT_SPINS)},
        **{f"{spins} spins": {SPINS: str(spins)} for spins in options.spins},
    }
    works = dict(zip(WORKS, (options.predictions, options.steps), strict=True))
    contenders = {name: Contender(own, options.batch) for name, own in variables.items()}
    try:
        results = list(measure(contenders, works))
    finally:
        for contender in contenders.values():
            contender.__exit__()
    columns = ("work", "busy", "waiting", "median_ms", "p90_ms", "over_active", "over_passive")
    print_table(f"Waiting, {DEFAULT_SPINS} spins where it is bounded", results, columns)
    for line in results:
        if line["waiting"] == BOUNDED:
            ratio, goal = GOALS[line["work"], line["busy"]]
            met = "met" if line[ratio] <= goal else "missed"
            state = "busy" if line["busy"] else "idle"
            print(f"{line['work']}, {state}: {line[ratio]:.3f} {ratio}, goal {goal}: {met}")
    spins = {name: own.get(SPINS) for name, own in variables.items()}
    write_json(options.json, [line | {"spins": spins[line["waiting"]]} for line in results])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(int(sys.argv[2]))
    else:
        main()
