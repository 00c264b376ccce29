"""What a temperature from a few labelled examples does to the NLL of others.

    python -m benchmarks.temperature OUT/tuned/sst2-640 --json JSON

The folder is a setting with two labels of an experiment, with its answers: `dalorra experiment
tuned --out OUT` makes this one. Of every adapter's test answers a pilot is drawn at random, a
temperature is fitted to it, and the rest is scored at that temperature: fitted as `dalorra
calibrate --temperature on` does it, to Platt's targets, and to the labels as they are. An answer
holds the distribution of each sample with its head integrated, which is tempered here in place of
those under each mask of the head.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyarrow import parquet
from scipy import optimize
from torch import Tensor

from benchmarks.report import arguments, print_table, write_json
from dalorra.decision.predictive import PosteriorSamples
from training.experiments.predictions import PREDICTIONS_FILE
from training.temperature import TEMPERATURES, fit_temperature

FITS = ("none", "labels", "platt")
COLUMNS = ("method", *(f"nll_{f}" for f in FITS), *(f"nll_{f}_worst" for f in FITS))


def main() -> None:
    """Runs the comparison and writes its JSON."""
    parser = arguments(__doc__, "temperature")
    parser.add_argument("runs", type=Path, help="folder METHOD/seed-N/predictions.parquet")
    parser.add_argument("--pilot", type=int, default=64, help="examples that a temperature gets")
    parser.add_argument("--draws", type=int, default=40, help="pilots of each adapter")
    options = parser.parse_args()
    adapters: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(options.runs.glob(f"*/*/{PREDICTIONS_FILE}")):
        adapters[path.parts[-3]].append(path)
    results = [
        {"method": method, "adapters": len(paths), "pilot": options.pilot, "draws": options.draws}
        | compare([read_answers(path) for path in paths], options.pilot, options.draws)
        for method, paths in adapters.items()
    ]
    print_table(f"Pilots of {options.pilot}", results, COLUMNS)
    write_json(options.json, results)


def read_answers(path: Path) -> PosteriorSamples:
    """The test answers of an adapter, `[n, M, 1, 2]`, the true label first.

    Raises:
        ValueError: more than two labels, of which an answer does not hold all.
    """
    records = [one for one in parquet.read_table(path).to_pylist() if one["data"] == "test"]
    if any(len(one["probabilities"]) != 2 for one in records):
        raise ValueError(f"{path}: answers of a task with two labels are needed")
    predicted = torch.tensor([r["sample_probabilities"] for r in records], dtype=torch.float64)
    right = torch.tensor([r["label"] == r["true_label"] for r in records])[:, None]
    true = torch.where(right, predicted, 1 - predicted)
    return PosteriorSamples(
        torch.stack([true, 1 - true], dim=-1)[:, :, None], torch.ones(1, dtype=torch.float64)
    )


def compare(answers: Sequence[PosteriorSamples], pilot: int, draws: int) -> dict[str, Any]:
    """NLL of what is not in the pilot: mean and worst over pilots, and the temperatures' range."""
    nlls: dict[str, list[float]] = defaultdict(list)
    temperatures: dict[str, list[float]] = defaultdict(list)
    for samples in answers:
        generator = torch.Generator().manual_seed(0)
        for _ in range(draws):
            order = torch.randperm(len(samples.probabilities), generator=generator)
            fitted_on, rest = (_part(samples, part) for part in (order[:pilot], order[pilot:]))
            for fit in FITS:
                temperature = _fitted(fit, fitted_on)
                temperatures[fit].append(temperature)
                nlls[fit].append(_nll(rest, temperature))
    result: dict[str, Any] = {}
    for fit in FITS:
        result |= {f"nll_{fit}": float(np.mean(nlls[fit])), f"nll_{fit}_worst": max(nlls[fit])}
    for fit in FITS[1:]:
        least, most = min(temperatures[fit]), max(temperatures[fit])
        result |= {f"temperature_{fit}_least": least, f"temperature_{fit}_most": most}
    return result


def _part(samples: PosteriorSamples, index: Tensor) -> PosteriorSamples:
    return PosteriorSamples(samples.probabilities[index], samples.weights)


def _fitted(fit: str, pilot: PosteriorSamples) -> float:
    if fit == "none":
        return 1.0
    if fit == "platt":
        return fit_temperature(pilot, [0] * len(pilot.probabilities))
    bounds = tuple(np.log(TEMPERATURES))
    found = optimize.minimize_scalar(
        lambda log_t: _nll(pilot, float(np.exp(log_t))), bounds=bounds, method="bounded"
    )
    return float(np.exp(found.x))


def _nll(samples: PosteriorSamples, temperature: float) -> float:
    """In nats; the true label is the first."""
    mean = samples.tempered(temperature).by_sample.mean(dim=1)
    return float(-mean[:, 0].clamp_min(torch.finfo(torch.float64).tiny).log().mean())


if __name__ == "__main__":
    main()
