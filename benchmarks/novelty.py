"""What tells inputs of another kind from those an adapter was trained on.

    python -m benchmarks.novelty --data FOLDER [--features FILE] [--json OUT] [--choice OUT]

Two questions, each with a JSON of its own. Which score: features, scores and sizes on shifts that
serve for nothing else (`benchmarks.shifts.DEVELOPMENT`), and what another spelling costs with and
without `augment: orthography`. And what the chosen one is worth: on news, questions, school exams,
shuffled words, random tokens and other languages, beside the doubts that an answer carries anyway
and the combined policy. The adapter has its novelty features and its policy already. FOLDER holds
`<task>/<split>.jsonl`; with `--features`, what the forwards computed is kept in a file and taken
from it the next time.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.novelty_scores import DOUBTS, Part, chosen_on, compared, spelling_cost
from benchmarks.rank_activations import RecordingBank
from benchmarks.report import print_table, write_json
from benchmarks.shifts import DEVELOPMENT, FAR, NEAR, shifted
from dalorra.adapter.directory import bundled_adapter, read_adapter
from dalorra.decision.predictive import PosteriorSamples, summarise
from dalorra.errors import ConfigError
from dalorra.predictor import Predictor
from training.novelty import trained_and_held_out
from training.orthography import VARIANTS, sentence, spellings
from training.tasks import Example, load_examples, subsample

SIZES = {"train": 600, "held_out": 300, "usual": 872, "respelt": 150}


def main() -> None:
    """Runs both comparisons and writes their JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--adapter", type=Path, default=bundled_adapter())
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=300, help="of each shift")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--features", type=Path)
    results = Path("benchmarks/results")
    parser.add_argument("--json", type=Path, default=results / "novelty.json")
    parser.add_argument("--choice", type=Path, default=results / "novelty_choice.json")
    options = parser.parse_args()
    parts = _parts(options.adapter, options.data, options.examples, options.seed, options.features)
    in_turn = [i for i in range(len(parts["train_in_turn"]["label"])) if i % VARIANTS]
    parts["reference"] = {  # as `training.novelty` makes it
        name: torch.cat([values, parts["train_in_turn"][name][in_turn]])
        for name, values in parts["train"].items()
    }
    choice = [*chosen_on(parts, DEVELOPMENT), *spelling_cost(parts)]
    print_table("Choice", choice, ("score", "shift", "auroc", "detected_at_2", "escalated"))
    write_json(options.choice, choice)
    adapter = read_adapter(options.adapter)
    if adapter.novelty is None or adapter.policy is None:
        raise ConfigError(f"{options.adapter} has no novelty features or no policy")
    found = compared(parts, (*FAR, *NEAR), adapter.novelty, adapter.policy)
    print_table("Novelty", found, ("shift", "score", "auroc", "fpr_at_95", "accepted"))
    write_json(options.json, found)


def _parts(adapter: Path, data: Path, count: int, seed: int, kept: Path | None) -> dict[str, Part]:
    """Name of each set of inputs → what the forwards computed of it."""
    parts: dict[str, Part] = torch.load(kept) if kept and kept.exists() else {}
    predictor = Predictor.load(adapter)
    for name, texts in _inputs(predictor, adapter, data, count, seed).items():
        if name not in parts:
            parts[name] = _computed(predictor, texts)
            if kept:
                torch.save(parts, kept)
    return parts


def _inputs(
    predictor: Predictor, adapter: Path, data: Path, count: int, seed: int
) -> dict[str, list[str]]:
    record = read_adapter(adapter).manifest.training
    trained, held_out = trained_and_held_out(record, load_examples("sst2", "train", data))
    validation = load_examples("sst2", "validation", data)
    known = [text for part in (trained, held_out, validation) for text in _texts(part)]
    train, held, usual = (
        subsample(part, min(SIZES[name], len(part)), seed)
        for name, part in (("train", trained), ("held_out", held_out), ("usual", validation))
    )
    in_turn = [spellings(example)[i % VARIANTS] for i, example in enumerate(train)]
    tokenizer = predictor.tokenizer._backend  # noqa: SLF001 - a fast tokenizer without state
    return {
        "train": _texts(train),
        "train_in_turn": _texts(in_turn),
        "held_out": _texts(held),
        "usual": _texts(usual),
        "respelt": [sentence(text) for text in _texts(usual)[: SIZES["respelt"]]],
        **shifted(data, _texts(usual), known, tokenizer, count, seed),
    }


def _texts(examples: list[Example]) -> list[str]:
    return [next(iter(example.input.values())) for example in examples]


def _computed(predictor: Predictor, texts: list[str]) -> Part:
    """Runs the texts, of similar length together."""
    prompts = [predictor.encode(text) for text in texts]
    order = sorted(range(len(prompts)), key=lambda i: -prompts[i].tokens)
    members = range(predictor.samples)
    network = predictor._network  # noqa: SLF001 - the state at the prompt's end is not served
    rows: list[dict[str, Tensor]] = []
    for start in range(0, len(order), 16):
        batch = [prompts[i] for i in order[start : start + 16]]
        bank = RecordingBank(predictor.bank)
        states = network.hidden_states(batch, members, bank, predictor.scope)
        ranks = bank.activations
        head = network.head.bind(bank, members)
        by_mask = network.head.probabilities(states.answers, head)
        samples = PosteriorSamples(by_mask.cpu(), head.weights.cpu())
        found = summarise(samples.tempered(predictor.policy.temperature), predictor.labels)
        for i, one in enumerate(found):
            doubts = {name: getattr(one, name) for name in DOUBTS if name != "max_probability"}
            doubts |= {"max_probability": 1.0 - one.probability}
            rows.append(
                {
                    "answer": states.answers[i].float().mean(dim=0).cpu(),
                    "prompt": states.prompt_end[i].float().cpu(),
                    "ranks": ranks[i],
                    "label": torch.tensor(predictor.labels.index(one.label)),
                    **{name: torch.tensor(value).double() for name, value in doubts.items()},
                }
            )
    back = torch.tensor(order).argsort()
    return {name: torch.stack([row[name] for row in rows])[back] for name in rows[0]}


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
