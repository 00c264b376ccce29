"""What tells inputs of another kind from those an adapter was trained on.

    python -m benchmarks.novelty --data FOLDER --json OUT [--features FILE]

sst2 against news, questions, school exams, shuffled words, random tokens and other languages, for
the doubts that an answer carries, for scores of the two hidden states that its forward computes
anyway, and for the combined policy. FOLDER holds `<task>/<split>.jsonl`; with `--features`, what
the forwards computed is kept in a file and taken from it the next time.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.languages import REVIEWS
from benchmarks.report import print_table, write_json
from dalorra.metrics import auroc
from dalorra.novelty import DEFAULT_LEVEL, Novelty
from dalorra.policy import pick_thresholds
from dalorra.predictive import summarise
from dalorra.predictor import Predictor, bundled_adapter
from training.tasks import load_examples, split_off, subsample

Part = dict[str, Tensor]
"""Of one set of n inputs: `answer` and `prompt` `[n, d]`, and `[n]` per doubt; higher: doubtful."""

FAR = ("ag_news", "trec", "arc", "shuffled", "random", "languages")
NEAR = ("rotten_tomatoes",)
DOUBTS = ("variance", "entropy", "mutual_information", "max_probability")


def main() -> None:
    """Runs the comparison and writes its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--adapter", type=Path, default=bundled_adapter())
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=100, help="of each shift; training: x 4")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/novelty.json"))
    options = parser.parse_args()
    if options.features and options.features.exists():
        parts = torch.load(options.features)
    else:
        predictor = Predictor.load(options.adapter)
        texts, right = _inputs(predictor, options.data, options.examples, options.seed)
        parts = {name: _computed(predictor, some) for name, some in texts.items()}
        parts["held_out"]["truth"] = torch.tensor(right)
        if options.features:
            torch.save(parts, options.features)
    results = _compared(parts, options.seed)
    print_table("Novelty", results, ("shift", "score", "auroc", "fpr_at_95", "not_accepted"))
    write_json(options.json, results)


def _inputs(
    predictor: Predictor, data: Path, count: int, seed: int
) -> tuple[dict[str, list[str]], list[int]]:
    """Name of each set → texts; and the index of the true label of the held-out ones."""
    rng = random.Random(seed)
    trained = split_off(load_examples("sst2", "train", data), 0.1, 1)  # as its run split them

    def texts(file: str, field: str, most: int) -> list[str]:
        lines = (data / file).read_text(encoding="utf-8").splitlines()
        return [json.loads(line)[field] for line in rng.sample(lines, most)]

    train, held_out = (
        subsample(part, n, seed) for part, n in zip(trained, (4 * count, 2 * count), strict=True)
    )
    usual = subsample(load_examples("sst2", "validation", data), count, seed)
    sentence = "sentence"
    sets = {
        "train": [e.input[sentence] for e in train],
        "held_out": [e.input[sentence] for e in held_out],
        "sst2": [e.input[sentence] for e in usual],
        "ag_news": texts("ag_news/validation.jsonl", "text", (6 * count) // 10),  # long ones
        "trec": texts("trec/train.jsonl", "text", count),
        "arc": texts("arc_easy/test.jsonl", "question", count),
    }
    words = [text.split() for text in sets["sst2"]]
    for some in words:
        rng.shuffle(some)
    sets["shuffled"] = [" ".join(some) for some in words]
    tokenizer = predictor.encoder._backend  # noqa: SLF001 - a fast tokenizer without state
    size = tokenizer.get_vocab_size()
    sets["random"] = [
        tokenizer.decode([rng.randrange(50, size) for _ in range(rng.randint(5, 30))])
        for _ in range(count)
    ]
    sets["languages"] = list(REVIEWS)
    sets["rotten_tomatoes"] = texts("rotten_tomatoes/test.jsonl", "text", count)
    return sets, [predictor.labels.index(e.label) for e in held_out]


def _computed(predictor: Predictor, texts: list[str]) -> Part:
    """Runs the texts, of similar length together."""
    prompts = [predictor.encode(text) for text in texts]
    order = sorted(range(len(prompts)), key=lambda i: -prompts[i].tokens)
    members, rows = range(predictor.samples), []
    for start in range(0, len(order), 16):
        batch = [prompts[i] for i in order[start : start + 16]]
        states = predictor._network.hidden_states(  # noqa: SLF001 - the prompt's is not served
            batch, members, predictor.bank, predictor.scope
        )
        found = summarise(predictor.posterior_samples(batch), predictor.labels)
        rows += [
            {
                "answer": states.answers[i].float().mean(dim=0),
                "prompt": states.prompt_end[i].float(),
                "variance": torch.tensor(one.variance),
                "entropy": torch.tensor(one.entropy),
                "mutual_information": torch.tensor(one.mutual_information),
                "max_probability": torch.tensor(1.0 - one.probability),
                "label": torch.tensor(predictor.labels.index(one.label)),
            }
            for i, one in enumerate(found)
        ]
    back = torch.tensor(order).argsort()
    return {name: torch.stack([row[name] for row in rows])[back] for name in rows[0]}


def _scores(parts: dict[str, Part]) -> dict[str, Callable[[Part], Tensor]]:
    """Name of each score → the score of a part, `[n]`; higher: more doubtful."""
    scores: dict[str, Callable[[Part], Tensor]] = {
        name: lambda part, name=name: part[name].double() for name in DOUBTS
    }
    for feature in ("answer", "prompt"):
        x = parts["train"][feature].double()
        mean = x.mean(dim=0)
        _, spread, directions = torch.linalg.svd(x - mean, full_matrices=False)
        labels = parts["train"]["label"]
        centres = torch.stack([x[labels == k].mean(dim=0) for k in labels.unique()])
        for q in (32, 64, 128):
            whitening = directions[:q].T / spread[:q] * (len(x) - 1) ** 0.5

            def to(part: Part, *, f=feature, m=mean, w=whitening) -> Tensor:
                return (part[f].double() - m) @ w

            near, middles = to(parts["train"]), (centres - mean) @ whitening

            def all_of(part: Part, *, to=to) -> Tensor:
                return to(part).square().sum(dim=1)

            def relative(part: Part, *, to=to, middles=middles, all_of=all_of) -> Tensor:
                return torch.cdist(to(part), middles).square().amin(dim=1) - all_of(part)

            def knn(part: Part, *, to=to, near=near) -> Tensor:
                return torch.cdist(to(part), near).kthvalue(5, dim=1).values

            scores |= {
                f"{feature}, Mahalanobis, {q}": all_of,
                f"{feature}, relative Mahalanobis, {q}": relative,
                f"{feature}, kNN, {q}": knn,
            }
    return scores


def _compared(parts: dict[str, Part], seed: int) -> list[dict[str, Any]]:
    held_out, usual = parts["held_out"], parts["sst2"]
    novelty = Novelty.fit(parts["train"]["answer"], held_out["answer"], adapter_digest="")
    scores = _scores(parts)
    scores["novelty"] = lambda part: -torch.tensor(novelty.p_values(part["answer"])).double()

    def combined(part: Part) -> Tensor:
        """Minus the least conformal p-value of what the policy looks at."""
        found = [scores["novelty"](part)]
        for name in ("variance", "max_probability"):
            known, asked = held_out[name].double(), part[name].double()
            found.append(-(1 + (known >= asked[:, None]).sum(1)) / (len(known) + 1.0))
        return torch.stack(found).amax(dim=0)

    scores["combined"] = combined
    policy = pick_thresholds(
        1.0 - held_out["max_probability"].double().numpy(),
        held_out["variance"].double().numpy(),
        (held_out["label"] == held_out["truth"]).numpy(),
        target_error=0.05,
    )

    def refused(part: Part, level: float | None) -> float:
        p_values = novelty.p_values(part["answer"])
        with_level = policy.model_copy(update={"min_novelty_p": level})
        verdicts = [
            with_level.decide(1.0 - float(doubt), float(variance), p).decision
            for doubt, variance, p in zip(
                part["max_probability"].double(), part["variance"].double(), p_values, strict=True
            )
        ]
        return sum(verdict != "accept" for verdict in verdicts) / len(verdicts)

    shares = {"max_probability": None, "combined": DEFAULT_LEVEL}  # policies without and with ε
    results = []
    for shift in (*FAR, *NEAR):
        for name, score in scores.items():
            inside, outside = score(usual), score(parts[shift])
            both = torch.cat([inside, outside]).numpy()
            in_distribution = torch.arange(len(both)).numpy() < len(inside)
            cut = outside.kthvalue(len(outside) // 20 + 1).values  # 95 % are at least this
            result = {
                "shift": shift,
                "score": name,
                "auroc": auroc(both, in_distribution),
                "fpr_at_95": float((inside >= cut).double().mean()),
                "n": {"in": len(inside), "out": len(outside), "train": len(parts["train"]["label"])}
                | {"calibration": len(held_out["label"])},
                "seed": seed,
            }
            if name in shares:
                result["not_accepted"] = refused(parts[shift], shares[name])
                result["not_accepted_in_distribution"] = refused(usual, shares[name])
            results.append(result)
    return results


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
