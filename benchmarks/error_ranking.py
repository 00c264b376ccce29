"""What ranks an adapter's errors, and how honest its probabilities are, from 2 labels to 150.

    python -m benchmarks.error_ranking ADAPTER ADAPTER … --data FOLDER

Every adapter answers the examples that its run only measured on; FOLDER holds
`<task>/<split>.jsonl`. Measures are of the served answers, at the policy's temperature. Calibration
is that of the mean mask, of the samples, and of these at the temperature, which was fitted to
examples that calibrated the policy.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from benchmarks.doubt_measures import above, interval
from benchmarks.doubts import unseen_examples
from benchmarks.report import arguments, print_table, write_json
from dalorra.decision.policy import Policy
from dalorra.decision.predictive import Prediction
from dalorra.predictor import Predictor
from training.answers import answer
from training.evaluate import score

_TINY: Final = 1e-12

MEASURES: Final[Mapping[str, Callable[[Prediction], float]]] = MappingProxyType(
    {
        "1 − p": lambda p: 1.0 - p.probability,
        "entropy": lambda p: p.entropy,
        "variance v": lambda p: p.variance,
        "mutual information I": lambda p: p.mutual_information,
        "v / p(1 − p)": lambda p: p.variance / max(p.probability * (1 - p.probability), _TINY),
        "I / entropy": lambda p: p.mutual_information / max(p.entropy, _TINY),
    }
)
"""Name → the measure; more of it should mean more errors."""

CALIBRATION: Final = ("ece", "ece_by_chance", "nll", "brier")


def main() -> None:
    """Asks the adapters and writes the JSON."""
    parser = arguments(__doc__, "error_ranking")
    parser.add_argument("adapters", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="examples of each; all by default")
    options = parser.parse_args()
    lines = [
        line for path in options.adapters for line in measure(path, options.data, options.limit)
    ]
    ranked = [line for line in lines if "measure" in line]
    judged = [line for line in lines if "of" in line]
    print_table("Errors", ranked, ("task", "labels", "n", "errors", "measure", "auroc", "interval"))
    print_table("Calibration", judged, ("task", "labels", "of", "temperature", *CALIBRATION))
    write_json(options.json, lines)


def measure(path: Path, data: Path, limit: int | None) -> list[dict[str, Any]]:
    """A line for each measure, with an interval over the examples, and for each calibration."""
    predictor = Predictor.load(path)
    examples = unseen_examples(path, data)[:limit]
    truth = [example.label for example in examples]
    temperature = predictor.policy.temperature
    predictor.policy = Policy.never()
    plain = answer(predictor, examples, quiet=False)
    served = plain.sampled
    if temperature != 1.0:
        predictor.policy = predictor.policy.model_copy(update={"temperature": temperature})
        served = answer(predictor, examples, mean_mask=False, quiet=False).sampled
    wrong = np.array([p.label != name for p, name in zip(served, truth, strict=True)])
    about = {
        "task": predictor.card.adapter,
        "digest": predictor.card.digest,
        "labels": len(predictor.labels),
        "n": len(examples),
        "errors": int(wrong.sum()),
    }
    ranked = []
    for name, of in MEASURES.items():
        values = np.array([of(prediction) for prediction in served])
        parts = values[wrong], values[~wrong]
        found = {"measure": name, "auroc": above(*parts), "interval": interval(*parts)}
        ranked.append({**about, **found})
    kinds = {"mean mask": (plain.mean_mask, 1.0), "samples": (plain.sampled, 1.0)}
    if temperature != 1.0:
        kinds["samples, tempered"] = (served, temperature)
    judged = []
    for kind, (predictions, at) in kinds.items():
        scores = score(predictions, truth, sampled=False)
        kept = {name: scores[name] for name in ("accuracy", *CALIBRATION)}
        judged.append({**about, "of": kind, "temperature": at, **kept})
    return [*ranked, *judged]


if __name__ == "__main__":
    main()
