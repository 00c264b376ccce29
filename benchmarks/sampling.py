"""How far M samples are from the posterior predictive, by the way they are drawn.

    python -m benchmarks.sampling --data FOLDER --json OUT

For validation sentences of the bundled adapter's task, over many banks of each kind and size: the
root-mean-square error of the probability and of the variance against a large bank; the standard
deviation of the variance in units of its mean, which is luck; the share of sentences that the
adapter's thresholds accept under one bank and not under another; and the standard error that an
answer would state in units of the true one. Kinds: independent samples, a stratified bank, one with
the head's mask integrated, and one that is matched on training examples as well.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.report import arguments, print_table, read_json, save_figure, write_json
from dalorra.adapter.directory import attached, bundled_adapter, read_adapter
from dalorra.adapter.layer import module_tensors
from dalorra.base.model import load_base_model
from dalorra.decision.predictive import PosteriorSamples, Prediction, summarise
from dalorra.posteriors.bank import BankSpec, MaskBank
from dalorra.predictor import Predictor
from dalorra.prompts import Prompt
from training.matched_bank import EXAMPLES, log_odds_gradients, matched
from training.methods import Dalorra
from training.objective import Objective
from training.tasks import load_examples, subsample

BANKS = {
    "independent": {"sampler": "iid", "head": "sampled"},
    "stratified": {"sampler": "stratified", "head": "sampled"},
    "stratified, head integrated": {"sampler": "stratified", "head": "integrated"},
    "matched, head integrated": {"sampler": "matched", "head": "integrated"},
}
COLOURS = ("#666666", "#0072B2", "#D55E00", "#009E73")
ROW_BUDGET = 512
REFERENCE = {"seed": 10_000, "sampler": "stratified", "head": "integrated"}
COLUMNS = ("bank", "samples", "probability_rmse", "variance_rmse", "luck", "changed", "told")

Draw = Callable[[BankSpec], MaskBank]


def main() -> None:
    """Runs the study and writes its JSON and figure."""
    parser = arguments(__doc__, "sampling")
    parser.add_argument("--adapter", type=Path, default=bundled_adapter())
    parser.add_argument("--data", type=Path, help="folder with sst2/validation.jsonl; the hub")
    parser.add_argument("--examples", type=int, default=48)
    parser.add_argument("--samples", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--seeds", type=int, default=24, help="banks of each kind and size")
    parser.add_argument("--reference", type=int, default=1000, help="samples of the large bank")
    parser.add_argument("--matched-on", type=int, default=EXAMPLES, help="training examples")
    parser.add_argument("--render", action="store_true", help="draw the JSON, measure nothing")
    options = parser.parse_args()
    if options.render:
        _figure(read_json(options.json), options.json.with_suffix(".png"))
        return

    # Short forwards: every cue row is compared with every other, so rows cost their square.
    predictor = Predictor.load(options.adapter, row_budget=ROW_BUDGET)
    examples = subsample(load_examples("sst2", "validation", options.data), options.examples, 0)
    prompts = sorted(
        (predictor.encode(example.texts) for example in examples), key=lambda p: p.tokens
    )
    training = subsample(load_examples("sst2", "train", options.data), options.matched_on, 0)
    draw = drawing(options.adapter, [predictor.encode(e.texts) for e in training])
    large = BankSpec.model_validate({"samples": options.reference, **REFERENCE})
    [reference] = moments(predictor, prompts, draw, [large])
    results = []
    for name, kind in BANKS.items():
        for samples in options.samples:
            specs = [
                BankSpec.model_validate({"samples": samples, "seed": seed, **kind})
                for seed in range(options.seeds)
            ]
            found = moments(predictor, prompts, draw, specs)
            results.append(
                {
                    "bank": name,
                    "samples": samples,
                    **compared(found, reference, predictor),
                    "examples": len(prompts),
                    "seeds": options.seeds,
                    "matched_on": options.matched_on,
                    "reference_samples": options.reference,
                }
            )
    print_table("Monte-Carlo error", results, COLUMNS)
    write_json(options.json, results)
    _figure(results, options.json.with_suffix(".png"))


def drawing(folder: Path, training: Sequence[Prompt]) -> Draw:
    """How the banks of an adapter are drawn, those that are matched on these prompts among them."""
    adapter = read_adapter(folder)
    base = load_base_model(adapter.manifest.base_model.name, dtype="float32")
    label_ids = torch.tensor(list(adapter.manifest.label_tokens.values()))
    with attached(adapter, base) as model:
        logits = torch.stack([m["mask_logits"] for m in module_tensors(model)]).detach()
        objective = Objective(Dalorra(), label_ids, adapter.manifest.scope, 1, None)
        gradients = log_odds_gradients(model, objective, training)

    def draw(spec: BankSpec) -> MaskBank:
        bank = MaskBank.draw(logits, spec)
        if spec.sampler != "matched":
            return bank
        own = gradients.clone()
        own[:, -1] = 0.0  # the head is integrated
        masks = matched(
            bank.masks.flatten(1), logits.sigmoid().flatten(), own.flatten(1), spec.seed
        )
        return MaskBank(masks.view_as(bank.masks), bank.head_probabilities)

    return draw


def moments(
    predictor: Predictor, prompts: Sequence[Prompt], draw: Draw, specs: Sequence[BankSpec]
) -> list[list[Prediction]]:
    """The answers under each of some banks of one size, in one go."""
    banks = [draw(spec) for spec in specs]
    all_of_them = MaskBank(torch.cat([b.masks for b in banks]), banks[0].head_probabilities)
    answers: list[list[Prediction]] = [[] for _ in banks]
    for start in range(0, len(prompts), 16):
        found = predictor.posterior_samples(prompts[start : start + 16], all_of_them)
        for own, part in zip(answers, found.probabilities.chunk(len(banks), dim=1), strict=True):
            own.extend(summarise(PosteriorSamples(part, found.weights), predictor.labels))
    return answers


def compared(
    found: Sequence[Sequence[Prediction]], reference: Sequence[Prediction], predictor: Predictor
) -> dict[str, Any]:
    """One line of the results.

    Args:
        found: answers under S banks to n inputs.
        reference: answers under a large one.
        predictor: gives the thresholds.
    """
    label = predictor.labels[1]
    probability = _array(found, lambda p: p.probabilities[label])  # [S, n]
    variance = _array(found, lambda p: p.variance)
    exact = (
        _array([reference], lambda p: p.probabilities[label]),
        _array([reference], lambda p: p.variance),
    )
    policy = predictor.policy
    accepted = _array(
        found,
        lambda p: p.probability >= policy.min_probability and p.variance <= policy.max_variance,
    )
    told = np.sqrt((_array(found, lambda p: p.standard_error or 0.0) ** 2).mean())
    return {
        "probability_rmse": float(np.sqrt(((probability - exact[0]) ** 2).mean())),
        "variance_rmse": float(np.sqrt(((variance - exact[1]) ** 2).mean())),
        "variance_bias": float((variance - exact[1]).mean()),
        "luck": float(np.median(variance.std(axis=0, ddof=1) / variance.mean(axis=0))),
        "changed": float(np.mean(accepted.any(axis=0) & ~accepted.all(axis=0))),
        "told": float(told / np.sqrt(probability.var(axis=0, ddof=1).mean())),
    }


def _array(
    answers: Sequence[Sequence[Prediction]], value: Callable[[Prediction], float]
) -> NDArray[np.float64]:
    return np.array([[value(p) for p in own] for own in answers], dtype=np.float64)


def _figure(results: list[dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(11.2, 3.4), layout="constrained")
    for axes, (key, title, label) in zip(
        figure.subplots(1, 3),
        (
            ("probability_rmse", "probability", "RMS error"),
            ("variance_rmse", "variance", "RMS error"),
            ("luck", "luck of the variance", "SD / mean over banks"),
        ),
        strict=True,
    ):
        for name, colour, marker in zip(BANKS, COLOURS, "os^D", strict=True):
            own = [r for r in results if r["bank"] == name]
            axes.plot(
                [r["samples"] for r in own],
                [r[key] for r in own],
                color=colour,
                marker=marker,
                label=name,
            )
        axes.set(xlabel="samples M", ylabel=label, title=title, ylim=(0, None))
    save_figure(figure, path)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
