"""How much a policy accepts that few examples calibrate, and how often it breaks its promise.

    python -m benchmarks.power [--on TASK/SPLIT=ADAPTER ...] --data FOLDER [--predictions FOLDER]

The adapter's answers to a split that it was not trained on are the world: n labelled examples are
drawn from them with replacement, again and again, and what a procedure makes of those is judged on
all, so that the true error of its thresholds is known. All procedures get the same draws:

- `calibrate`: as `dalorra calibrate`, a tenth of the draw for the pilot included;
- `MAPIE, …`: MAPIE's precision control on the probability alone, over its 100 thresholds, with
  Bonferroni's and Holm's correction (its default) or along a fixed sequence from the highest; the
  lowest threshold that is valid is taken.

With `--predictions` the answers are kept there, one file for each task.
"""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mapie.risk_control import BinaryClassificationController
from scipy import stats

from benchmarks.promise import answered_by
from benchmarks.report import arguments, print_table, write_json
from dalorra.adapter.directory import bundled_adapter
from training.calibrate import PILOT_FRACTION, AnsweredExamples
from training.promise import Promise, scored_examples
from training.risk_control import (
    BoolArray,
    FloatArray,
    IntArray,
    Ranked,
    ScoredExamples,
    choose_steps,
    declare_strictness,
)

SIZES = (100, 200, 400, 800)

Procedure = Callable[[ScoredExamples, IntArray, Promise], BoolArray | None]
"""World, the drawn examples and the promise → which of the world it accepts; None: nothing."""


def main() -> None:
    """Draws, calibrates, counts, and writes the JSON."""
    parser = arguments(__doc__, "power")
    default = f"sst2/validation={bundled_adapter()}"
    parser.add_argument("--on", nargs="+", default=[default], metavar="TASK/SPLIT=ADAPTER")
    parser.add_argument("--data", type=Path, help="folder with TASK/SPLIT.jsonl; the hub")
    parser.add_argument("--predictions", type=Path)
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--target-error", type=float, nargs="+", default=[0.05, 0.1])
    parser.add_argument("--confidence", type=float, default=0.95)
    options = parser.parse_args()
    results = []
    for one in options.on:
        split, _, adapter = one.partition("=")
        task, _, name = split.partition("/")
        kept = options.predictions and options.predictions / f"{task}.json"
        answered = answered_by(Path(adapter), task, name, options.data, kept)
        for target in options.target_error:
            promise = Promise(target, options.confidence)
            world = as_world(answered, promise)
            results += [
                {"task": task, "split": name} | line
                for n in SIZES
                for line in compared(world, promise, n, options.draws)
            ]
    shown = ("task", "target_error", "n", "procedure", "accepted", "accepts_nothing", "violations")
    print_table("Power", results, shown)
    write_json(options.json, results)


def as_world(answered: AnsweredExamples, promise: Promise) -> ScoredExamples:
    """All answers, with their errors."""
    truth = [example.label for example in answered.examples]
    labels = sorted({*truth, *(p.label for p in answered.predictions)})
    return scored_examples(answered.predictions, truth, labels, promise)


def compared(
    world: ScoredExamples, promise: Promise, n: int, draws: int
) -> list[Mapping[str, Any]]:
    """One line for each procedure.

    Returns:
        `accepted`, the mean share of the world that is accepted, 0 where nothing is;
        `accepts_nothing`, the share of the draws; `violations`, the share of the draws whose true
        error is above target, and `p_value` of as many or more if each had a chance of
        1 − confidence; `error`, the mean true error of those that accept.
    """
    size, wrong = len(world.probability), world.risks[0].loss
    drawn = [np.random.default_rng(seed).integers(0, size, n) for seed in range(draws)]
    lines = []
    for name, procedure in PROCEDURES.items():
        found = [procedure(world, draw, promise) for draw in drawn]
        taken = [accepts for accepts in found if accepts is not None and accepts.any()]
        errors = np.array([wrong[accepts].mean() for accepts in taken])
        broken = int((errors > promise.target_error).sum())
        lines.append(
            {
                "target_error": promise.target_error,
                "confidence": promise.confidence,
                "n": n,
                "procedure": name,
                "draws": draws,
                "accepted": sum(accepts.mean() for accepts in taken) / draws,
                "accepts_nothing": 1.0 - len(taken) / draws,
                "violations": broken / draws,
                "p_value": float(stats.binom.sf(broken - 1, draws, 1.0 - promise.confidence)),
                "error": float(errors.mean()) if len(errors) else None,
                "world": size,
                "world_error": float(wrong.mean()),
            }
        )
    return lines


def _calibrate(world: ScoredExamples, drawn: IntArray, promise: Promise) -> BoolArray | None:
    cut = round(PILOT_FRACTION * len(drawn))
    pilot, tested = world.part(drawn[:cut]), world.part(drawn[cut:])
    strictness = declare_strictness(pilot)
    ranked = Ranked.by(strictness, tested)
    targets = [promise.target_error]
    (step,) = choose_steps(ranked, pilot, tested, targets, promise.confidence)
    if step is None:
        return None
    tau_p, tau_v = strictness.thresholds(ranked.level_of(step))
    return (world.probability >= tau_p) & (world.variance <= tau_v)


def _mapie(method: str) -> Procedure:
    def procedure(world: ScoredExamples, drawn: IntArray, promise: Promise) -> BoolArray | None:
        right = (world.risks[0].loss[drawn] == 0.0).astype(np.int64)
        controller = BinaryClassificationController(
            _as_two_classes,
            risk="precision",
            target_level=1.0 - promise.target_error,
            confidence_level=promise.confidence,
            list_predict_params=THRESHOLDS,
            fwer_method=method,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that it is new, and where nothing is valid
            controller.calibrate(world.probability[drawn, None], right)
        valid = np.asarray(controller.valid_predict_params)
        return world.probability >= valid.min() if len(valid) else None

    return procedure


def _as_two_classes(score: FloatArray) -> FloatArray:
    return np.column_stack([1.0 - score[:, 0], score[:, 0]])


THRESHOLDS = np.linspace(0.99, 0.0, 100)
PROCEDURES: Mapping[str, Procedure] = {
    "calibrate": _calibrate,
    "MAPIE, default": _mapie("bonferroni_holm"),
    "MAPIE, fixed sequence": _mapie("fixed_sequence"),
}


if __name__ == "__main__":
    main()
