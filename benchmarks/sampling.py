"""How far M samples are from the posterior predictive, by the way they are drawn.

    python -m benchmarks.sampling --data FOLDER --json OUT

For validation sentences of the bundled adapter's task: root-mean-square error of the probability
and of the variance against M = 1,000, for independent samples, for a stratified bank, and for a
stratified bank with the head's mask integrated.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.report import arguments, print_table, read_json, save_figure, write_json
from dalorra.adapter.directory import bundled_adapter, read_adapter
from dalorra.decision.predictive import Prediction, summarise
from dalorra.posteriors.bank import BankSpec, MaskBank
from dalorra.predictor import Predictor
from dalorra.prompts import Prompt
from training.tasks import load_examples, subsample

BANKS = {
    "independent": {"sampler": "iid", "head": "sampled"},
    "stratified": {"sampler": "stratified", "head": "sampled"},
    "stratified, head integrated": {"sampler": "stratified", "head": "integrated"},
}
ROW_BUDGET = 512
REFERENCE = {"samples": 1000, "seed": 10_000, "sampler": "stratified", "head": "integrated"}


def main() -> None:
    """Runs the study and writes its JSON and figure."""
    parser = arguments(__doc__, "sampling")
    parser.add_argument("--adapter", type=Path, default=bundled_adapter())
    parser.add_argument("--data", type=Path, help="folder with sst2/validation.jsonl; the hub")
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--samples", type=int, nargs="+", default=[2, 3, 5, 7, 10, 15, 20])
    parser.add_argument("--seeds", type=int, default=10, help="banks of each kind and size")
    parser.add_argument("--render", action="store_true", help="draw the JSON, measure nothing")
    options = parser.parse_args()
    if options.render:
        _figure(read_json(options.json), options.json.with_suffix(".png"))
        return

    # Short forwards: every cue row is compared with every other, so rows cost their square.
    predictor = Predictor.load(options.adapter, row_budget=ROW_BUDGET)
    examples = subsample(load_examples("sst2", "validation", options.data), options.examples, 0)
    prompts = sorted(
        (predictor.encode(dict(example.input)) for example in examples), key=lambda p: p.tokens
    )
    logits = _mask_logits(options.adapter)
    reference = _moments(predictor, prompts, logits, REFERENCE)
    results = []
    for name, kind in BANKS.items():
        for samples in options.samples:
            errors = np.array(
                [
                    _moments(predictor, prompts, logits, {"samples": samples, "seed": seed, **kind})
                    - reference
                    for seed in range(options.seeds)
                ]
            )  # [seeds, 2, examples]
            probability, variance = np.sqrt((errors**2).mean(axis=(0, 2)))
            results.append(
                {
                    "bank": name,
                    "samples": samples,
                    "probability_rmse": float(probability),
                    "variance_rmse": float(variance),
                    "variance_bias": float(errors[:, 1].mean()),
                    "examples": len(prompts),
                    "seeds": options.seeds,
                    "reference_samples": REFERENCE["samples"],
                }
            )
    print_table(
        "Monte-Carlo error",
        results,
        ("bank", "samples", "probability_rmse", "variance_rmse", "variance_bias"),
    )
    write_json(options.json, results)
    _figure(results, options.json.with_suffix(".png"))


def _mask_logits(folder: Path) -> torch.Tensor:
    """φ, `[modules, r]`."""
    adapter = read_adapter(folder)
    names = (f"base_model.model.{name}.lora_mask_logits" for name in adapter.manifest.modules)
    return torch.stack([adapter.tensors[name] for name in names])


def _moments(
    predictor: Predictor,
    prompts: Sequence[Prompt],
    logits: torch.Tensor,
    spec: dict[str, object],
) -> np.ndarray:
    """Probability of the second label and variance of the answer, `[2, examples]`."""
    bank = MaskBank.draw(logits, BankSpec.model_validate(spec))
    found: list[Prediction] = []
    for start in range(0, len(prompts), 16):
        batch = prompts[start : start + 16]
        found += summarise(predictor.posterior_samples(batch, bank), predictor.labels)
    label = predictor.labels[1]
    return np.array([[p.probabilities[label] for p in found], [p.variance for p in found]])


def _figure(results: list[dict[str, object]], path: Path) -> None:
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    for axes, key, title in zip(
        figure.subplots(1, 2),
        ("probability_rmse", "variance_rmse"),
        ("probability", "variance"),
        strict=True,
    ):
        for name, colour, marker in zip(
            BANKS, ("#666666", "#0072B2", "#D55E00"), ("o", "s", "^"), strict=True
        ):
            own = [r for r in results if r["bank"] == name]
            axes.plot(
                [r["samples"] for r in own],
                [r[key] for r in own],
                color=colour,
                marker=marker,
                label=name,
            )
        axes.set(xlabel="samples M", ylabel="RMS error", title=title, yscale="log")
    save_figure(figure, path)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
