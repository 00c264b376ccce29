"""What becomes of texts that no label answers: the policy, probability alone, and an `oos` class.

    python -m benchmarks.out_of_scope ADAPTER --with-class ADAPTER --data FOLDER

The first adapter has the task's labels alone, the second was also trained on the out-of-scope texts
of the training set, as one more label; FOLDER holds `clinc150/validation.jsonl`, which chose
nothing of either. One half of it calibrates each contender for 5 % error among what is accepted,
out-of-scope texts counted as errors and taken as `--share` of all, as in the published test set
(1,000 beside 4,500); the other half measures; then they change places. Beside that, scores of
novelty are compared on what the first adapter's run held out and the out-of-scope texts of the
training set.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from torch import Tensor

from benchmarks.doubt_measures import above, interval
from benchmarks.novelty_scores import LAST_DEPTHS, by_depth, summed
from benchmarks.report import arguments, print_table, write_json
from dalorra.adapter.directory import read_adapter
from dalorra.decision.intervals import binomial_interval
from dalorra.decision.policy import Decision, Policy
from dalorra.decision.predictive import Prediction
from dalorra.predictor import Predictor
from training.answers import answer
from training.calibrate import PILOT_FRACTION, AnsweredExamples, calibrated
from training.data import mixed, parted
from training.novelty import novelty_limit, novelty_reference, trained_and_held_out
from training.promise import Promise
from training.tasks import Example, load_examples, split_off, subsample

OUTSIDE: Final = "oos"
PROMISE: Final = Promise(0.05)


@dataclass(frozen=True, slots=True)
class Contender:
    """Predictions as one way of rejecting has them.

    Attributes:
        name: for the table.
        labels: that may be accepted, and others.
        predictions: by text.
        min_novelty_p: level below which nothing is accepted, or None.
    """

    name: str
    labels: Sequence[str]
    predictions: dict[str, Prediction]
    min_novelty_p: float | None = None

    def answered(self, examples: Sequence[Example]) -> AnsweredExamples:
        """Examples with the predictions for them."""
        return AnsweredExamples([self.predictions[_text(e)] for e in examples], examples)


def main() -> None:
    """Asks both adapters and writes the JSON."""
    parser = arguments(__doc__, "out_of_scope")
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--with-class", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--inside", type=int, default=1000, help="texts in scope, at most")
    parser.add_argument("--share", type=float, default=1000 / 5500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    loaded = load_examples("clinc150", "validation", options.data, out_of_scope=True)
    inside, outside = parted(list({_text(e): e for e in loaded}.values()), (OUTSIDE,))
    inside = subsample(inside, min(options.inside, len(inside)), options.seed)
    examples = [*inside, *outside]
    contenders = ask(options.adapter, options.with_class, examples)
    lines = [judged(one, examples, options.share, options.seed) for one in contenders]
    shown = ("contender", "auroc", "accepted", "accepted_outside", "error", "accuracy")
    print_table(f"n = {lines[0]['n']}, {lines[0]['outside']} out of scope", lines, shown)
    scores = compare_scores(*_features(options.adapter, options.data))
    print_table("Scores of novelty", scores, ("score", "last_depth", "auroc", "detected_at_2"))
    write_json(options.json, [*lines, *scores])


def ask(plain: Path, with_class: Path, examples: Sequence[Example]) -> list[Contender]:
    """All contenders, of what the two adapters answer."""
    policy = _contender("policy", Predictor.load(plain), examples)
    alone = {text: replace(p, variance=0.0) for text, p in policy.predictions.items()}
    classed = _contender("`oos` as a class", Predictor.load(with_class), examples)
    rejecting = {
        text: replace(p, probability=0.0) if p.label == OUTSIDE else p
        for text, p in classed.predictions.items()
    }
    return [
        policy,
        replace(policy, name="policy without novelty", min_novelty_p=None),
        Contender("probability alone", policy.labels, alone),
        replace(classed, predictions=rejecting, min_novelty_p=None),
    ]


def _contender(name: str, predictor: Predictor, examples: Sequence[Example]) -> Contender:
    """An adapter's answers at the temperature of its policy, and its novelty level."""
    temperature = predictor.policy.temperature
    predictor.policy = Policy.never().model_copy(update={"temperature": temperature})
    found = answer(predictor, examples, mean_mask=False, quiet=False).sampled
    level, _ = novelty_limit(predictor.novelty, None, PROMISE.confidence)
    texts = (_text(example) for example in examples)
    return Contender(name, predictor.labels, dict(zip(texts, found, strict=True)), level or None)


def _features(adapter: Path, data: Path) -> tuple[Tensor, list[str], Tensor, Tensor]:
    """What `compare_scores` takes, of the training set."""
    predictor = Predictor.load(adapter)
    record = read_adapter(adapter).manifest.training
    inside, outside = parted(
        load_examples("clinc150", "train", data, out_of_scope=True), (OUTSIDE,)
    )
    trained, held_out = trained_and_held_out(record, inside)
    reference = novelty_reference(trained, augment="none")
    features = (
        predictor.novelty_features([predictor.encode(dict(one.input)) for one in part])
        for part in (reference, held_out, outside)
    )
    training, usual, beyond = features
    return training, [one.label for one in reference], usual, beyond


def compare_scores(
    training: Tensor, classes: Sequence[str], usual: Tensor, outside: Tensor
) -> list[dict[str, Any]]:
    """How well scores of novelty tell what is out of scope.

    Args:
        training: features of examples that were trained on, `[n, D, d]`.
        classes: of each.
        usual: features of others like them, `[u, D, d]`.
        outside: features of what is out of scope, `[o, D, d]`.
    """
    lines = []
    for name, by in (("all training data", None), ("nearest label", classes)):
        distances = by_depth(training, by)
        near, far = (distances(part) for part in (usual, outside))
        for last in LAST_DEPTHS:
            within, beyond = summed(near, last), summed(far, last)
            lines.append(
                {
                    "score": name,
                    "last_depth": last,
                    "auroc": above(beyond.numpy(), within.numpy()),
                    "auroc_interval": interval(beyond.numpy(), within.numpy()),
                    "detected_at_2": float((beyond > within.quantile(0.98)).double().mean()),
                    "n": {"train": len(training), "in": len(usual), "out": len(outside)},
                }
            )
    return lines


def judged(
    contender: Contender, examples: Sequence[Example], share: float, seed: int
) -> dict[str, Any]:
    """Shares and errors over both halves, each under the policy that the other one calibrated."""
    inside, outside = (_halves(part, seed) for part in parted(examples, (OUTSIDE,)))
    accepted: dict[str, list[bool]] = {"inside": [], "outside": [], "wrong": []}
    for own in (0, 1):
        policy = _calibrated(contender, mixed(inside[1 - own], outside[1 - own], share))
        for name, part in (("inside", inside[own]), ("outside", outside[own])):
            answers = contender.answered(part)
            for prediction, example in zip(answers.predictions, part, strict=True):
                taken = policy.decide(prediction).decision is Decision.ACCEPT
                accepted[name].append(taken)
                if name == "inside" and taken:
                    accepted["wrong"].append(prediction.label != example.label)
    doubt = {
        name: np.array([1.0 - contender.predictions[_text(e)].probability for e in [*one, *two]])
        for name, (one, two) in (("outside", outside), ("inside", inside))
    }
    answered = contender.answered([*inside[0], *inside[1]])
    right = [
        p.label == e.label for p, e in zip(answered.predictions, answered.examples, strict=True)
    ]
    taken, beyond = sum(accepted["inside"]), sum(accepted["outside"])
    odds = share / (1.0 - share)
    wrong, weight = sum(accepted["wrong"]), odds * len(right) / len(accepted["outside"])
    return {
        "contender": contender.name,
        "n": len(examples),
        "outside": len(accepted["outside"]),
        "share": share,
        "accuracy": float(np.mean(right)),
        "auroc": above(doubt["outside"], doubt["inside"]),
        "auroc_interval": interval(doubt["outside"], doubt["inside"]),
        "auroc_of_novelty": above(*novel)
        if (novel := _novel(contender, outside, inside))
        else None,
        "accepted": taken / len(right),
        "accepted_interval": binomial_interval(taken, len(right)),
        "accepted_outside": beyond / len(accepted["outside"]),
        "accepted_outside_interval": binomial_interval(beyond, len(accepted["outside"])),
        # at the share that was calibrated for
        "error": (wrong + weight * beyond) / max(taken + weight * beyond, 1e-9),
        "error_inside": wrong / max(taken, 1),
    }


def _novel(contender: Contender, *parts: Sequence[Sequence[Example]]) -> list[np.ndarray] | None:
    """1 − the novelty p-value of each example of each part; None: the contender does not use it."""
    if contender.min_novelty_p is None:
        return None
    found = []
    for halves in parts:
        answered = contender.answered([example for half in halves for example in half])
        found.append(np.array([1.0 - (p.novelty or 0.0) for p in answered.predictions]))
    return found


def _calibrated(contender: Contender, examples: Sequence[Example]) -> Policy:
    tested, pilot = split_off(examples, PILOT_FRACTION, 0)
    frame = Policy.never().model_copy(update={"min_novelty_p": contender.min_novelty_p})
    declaring, deciding = (contender.answered(part) for part in (pilot, tested))
    return calibrated(frame, declaring, deciding, PROMISE, contender.labels)


def _halves(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    shuffled = random.Random(seed).sample(list(examples), len(examples))
    return shuffled[::2], shuffled[1::2]


def _text(example: Example) -> str:
    return example.input["text"]


if __name__ == "__main__":
    main()
