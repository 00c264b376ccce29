"""Whether the calibrated policy keeps its promise on data that it has not seen.

    python -m benchmarks.promise --data FOLDER --json OUT [--predictions FILE]

Half of the validation split, drawn at random, calibrates a policy as `dalorra calibrate` does; the
error among accepted answers is counted on the other half. With `--predictions`, the adapter's
answers are kept in a file and taken from it the next time: only thresholds are then chosen.

What is counted as a violation is an error rate above target *on the other half*. That half is a
sample of some hundred accepted answers, so a policy whose true error is just within the target is
counted in almost every other split; `above_chance` counts the splits whose errors the target
cannot explain (exact binomial test, level 1 − confidence). All splits share the same sentences, and
what one half lacks in errors the other has too many of: the binomial margin, which takes the splits
for independent draws, is a yardstick and no proof. The proof is the test's, and
`tests/unit/training/test_risk_control.py` checks it against a known truth.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.report import arguments, print_table, write_json
from dalorra.adapter.directory import bundled_adapter
from dalorra.decision.novelty import DEFAULT_SHARE
from dalorra.decision.policy import Decision, Policy
from dalorra.decision.predictive import Prediction
from dalorra.predictor import Predictor
from training.answers import answer
from training.calibrate import PILOT_FRACTION, SPLIT_SEED, AnsweredExamples, points_of
from training.promise import Promise
from training.tasks import load_examples, split_off


@dataclass(frozen=True, slots=True)
class Half:
    """What one split gave: thresholds from one half, their accepted answers on the other."""

    accepted: int
    errors: int
    asked: int
    qualified: bool


def main() -> None:
    """Runs the splits and writes their JSON."""
    parser = arguments(__doc__, "promise")
    parser.add_argument("--adapter", type=Path, default=bundled_adapter())
    parser.add_argument("--data", type=Path, help="folder with sst2/validation.jsonl; the hub")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--target-error", type=float, nargs="+", default=[0.05])
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--predictions", type=Path)
    options = parser.parse_args()
    answered = answered_by(options.adapter, "sst2", "validation", options.data, options.predictions)
    levels = {0.0}
    if all(p.novelty is not None for p in answered.predictions):
        levels.add(DEFAULT_SHARE)
    results = [
        summary(halves(answered, promise, level, options.splits), promise, level)
        for promise in (Promise(target, options.confidence) for target in options.target_error)
        for level in sorted(levels)
    ]
    print_table("Promise", results, tuple(results[0]))
    write_json(options.json, results)


def answered_by(
    adapter: Path, task: str, split: str, data: Path | None, kept: Path | None
) -> AnsweredExamples:
    """The adapter's answers to a split, whatever its policy, or those that a file keeps."""
    examples = load_examples(task, split, data)
    if kept and kept.exists():
        return AnsweredExamples(
            [Prediction(**one) for one in json.loads(kept.read_text())], examples
        )
    predictor = Predictor.load(adapter)
    predictor.policy = Policy.never()
    predictions = answer(predictor, examples, mean_mask=False).sampled
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps([asdict(one) for one in predictions]))
    return AnsweredExamples(predictions, examples)


def halves(answered: AnsweredExamples, promise: Promise, level: float, splits: int) -> list[Half]:
    """Calibrates on a random half, counts on the other, `splits` times."""
    return [_one(answered, promise, level, seed) for seed in range(splits)]


def _one(answered: AnsweredExamples, promise: Promise, level: float, seed: int) -> Half:
    order = np.random.default_rng(seed).permutation(len(answered.examples)).tolist()
    middle = len(order) // 2
    calibration, rest = _part(answered, order[:middle]), _part(answered, order[middle:])
    never = Policy.never().model_copy(update={"min_novelty_p": level or None})
    # As `calibrate` splits it.
    at = {id(example): i for i, example in enumerate(calibration.examples)}
    tested, pilot = split_off(
        calibration.examples, PILOT_FRACTION, SPLIT_SEED, repeats_together=False
    )
    points = points_of(
        never,
        _part(calibration, [at[id(example)] for example in pilot]),
        _part(calibration, [at[id(example)] for example in tested]),
        promise,
        sorted({example.label for example in answered.examples}),
    )
    if not points:
        return Half(0, 0, len(rest.examples), qualified=False)
    thresholds = {name: getattr(points[0], name) for name in ("min_probability", "max_variance")}
    policy = never.model_copy(update=thresholds)
    wrong = [
        prediction.label != example.label
        for prediction, example in zip(rest.predictions, rest.examples, strict=True)
        if policy.decide(prediction).decision is Decision.ACCEPT
    ]
    return Half(len(wrong), sum(wrong), len(rest.examples), qualified=True)


def _part(answered: AnsweredExamples, index: list[int]) -> AnsweredExamples:
    return AnsweredExamples(
        [answered.predictions[i] for i in index], [answered.examples[i] for i in index]
    )


def summary(found: list[Half], promise: Promise, level: float) -> dict[str, Any]:
    """One line of the results.

    Returns:
        splits; `nothing_qualifies`; `violations`, splits with an error rate above target on the
        other half, and `p_value` of as many or more if each had a chance of 1 − confidence;
        `above_chance`, see the module; means over all splits of the share that is accepted, and
        over those that accept of the error rate among accepted.
    """
    target, chance = promise.target_error, 1.0 - promise.confidence
    accepting = [half for half in found if half.accepted]
    violations = sum(half.errors > target * half.accepted for half in accepting)
    beyond = sum(
        bool(stats.binom.sf(half.errors - 1, half.accepted, target) <= chance) for half in accepting
    )
    return {
        "target_error": target,
        "confidence": promise.confidence,
        "novelty_level": level,
        "splits": len(found),
        "nothing_qualifies": sum(not half.qualified for half in found),
        "violations": violations,
        "p_value": float(stats.binom.sf(violations - 1, len(found), chance)),
        "above_chance": beyond,
        "mean_accepted": float(np.mean([half.accepted / half.asked for half in found])),
        "mean_error": float(np.mean([half.errors / half.accepted for half in accepting]))
        if accepting
        else None,
        "calibrated_on": len(found) and found[0].asked,
    }


if __name__ == "__main__":
    main()
