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

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.novelty_scores import Part, chosen_on, compared, spelling_cost
from benchmarks.rank_activations import ObservedBank
from benchmarks.report import arguments, print_table, write_json
from benchmarks.shifts import DEVELOPMENT, FAR, NEAR, shifted
from dalorra.adapter.directory import Adapter, attached, bundled_adapter, read_adapter
from dalorra.adapter.layer import low_rank_updates
from dalorra.base.model import BaseModel, load_base_model
from dalorra.decision.predictive import PosteriorSamples
from dalorra.errors import ConfigError
from dalorra.forward.llama.base import ArrangedLlama
from dalorra.forward.llama.network import PackedLlama
from dalorra.forward.reference_rows import right_padded
from dalorra.predictor import Predictor
from dalorra.prompts import Prompt
from training.novelty import trained_and_held_out
from training.orthography import VARIANTS, sentence, spellings
from training.tasks import Example, load_examples, subsample

SIZES = {"train": 600, "held_out": 300, "usual": 872, "respelt": 150}


def main() -> None:
    """Runs both comparisons and writes their JSON."""
    parser = arguments(__doc__, "novelty")
    parser.add_argument("--adapter", type=Path, default=bundled_adapter())
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=300, help="of each shift")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--features", type=Path)
    choice = Path("benchmarks/results/novelty_choice.json")
    parser.add_argument("--choice", type=Path, default=choice)
    options = parser.parse_args()
    parts = _parts(options.adapter, options.data, options.examples, options.seed, options.features)
    in_turn = [i for i in range(len(parts["train_in_turn"]["label"])) if i % VARIANTS]
    parts["reference"] = {  # as `training.novelty` makes it
        name: torch.cat([values, parts["train_in_turn"][name][in_turn]])
        for name, values in parts["train"].items()
    }
    chosen = [*chosen_on(parts, DEVELOPMENT), *spelling_cost(parts)]
    print_table("Choice", chosen, ("score", "shift", "auroc", "detected_at_2", "escalated"))
    write_json(options.choice, chosen)
    adapter = read_adapter(options.adapter)
    if adapter.novelty is None or adapter.policy is None:
        raise ConfigError(f"{options.adapter} has no novelty features or no policy")
    found = compared(parts, (*FAR, *NEAR), adapter.novelty, adapter.policy)
    print_table("Novelty", found, ("shift", "score", "auroc", "fpr_at_95", "accepted"))
    write_json(options.json, found)


def _parts(path: Path, data: Path, count: int, seed: int, kept: Path | None) -> dict[str, Part]:
    """Name of each set of inputs → what the forwards computed of it."""
    parts: dict[str, Part] = torch.load(kept) if kept and kept.exists() else {}
    adapter = read_adapter(path)
    base = load_base_model(adapter.manifest.base_model.name)
    reader = Reader(adapter, base)
    for name, texts in _inputs(adapter, base, data, count, seed).items():
        if name not in parts:
            parts[name] = reader.read(texts)
            if kept:
                torch.save(parts, kept)
    return parts


def _inputs(
    adapter: Adapter, base: BaseModel, data: Path, count: int, seed: int
) -> dict[str, list[str]]:
    record = adapter.manifest.training
    trained, held_out = trained_and_held_out(record, load_examples("sst2", "train", data))
    validation = load_examples("sst2", "validation", data)
    known = [text for part in (trained, held_out, validation) for text in _texts(part)]
    train, held, usual = (
        subsample(part, min(SIZES[name], len(part)), seed)
        for name, part in (("train", trained), ("held_out", held_out), ("usual", validation))
    )
    in_turn = [spellings(example)[i % VARIANTS] for i, example in enumerate(train)]
    tokenizer = base.tokenizer.backend_tokenizer
    return {
        "train": _texts(train),
        "train_in_turn": _texts(in_turn),
        "held_out": _texts(held),
        "usual": _texts(usual),
        "respelt": [sentence(text) for text in _texts(usual)[: SIZES["respelt"]]],
        **shifted(data, _texts(usual), known, tokenizer, count, seed),
    }


def _texts(examples: list[Example]) -> list[str]:
    return [next(iter(example.texts.values())) for example in examples]


class Reader:
    """Runs texts through an adapter with rank masks on the answer cue, and keeps the features.

    Args:
        adapter: with scope `answer_tokens`.
        base: its base model.
    """

    def __init__(self, adapter: Adapter, base: BaseModel) -> None:
        with attached(adapter, base) as model:
            arranged = ArrangedLlama(base.model)
            self._predictor = Predictor.of(adapter, base, model, arranged=arranged)
            labels = torch.tensor(self._predictor.label_ids, device=base.device)
            self._network = PackedLlama(
                arranged, low_rank_updates(model), labels, self._predictor.bank, "answer_tokens"
            )
        self._trunk = cast(Any, base.model).model

    def read(self, texts: list[str]) -> Part:
        """Texts of similar length together; order kept."""
        predictor, samples = self._predictor, range(self._predictor.samples)
        prompts = [predictor.encode(text) for text in texts]
        order = sorted(range(len(prompts)), key=lambda i: -prompts[i].tokens)
        parts: list[Part] = []
        for start in range(0, len(order), 16):
            batch = [prompts[i] for i in order[start : start + 16]]
            bank = ObservedBank(predictor.bank)
            answers = self._network.under(bank).answers(batch, samples)
            drawn = PosteriorSamples(answers.probabilities.cpu(), answers.weights.cpu())
            found = predictor.policy.summarise(drawn, predictor.labels)
            doubts = {
                name: torch.tensor([getattr(one, name) for one in found]).double()
                for name in ("variance", "entropy", "mutual_information", "probability")
            }
            parts.append(
                {
                    "thirds": answers.features.mean(dim=1).cpu(),
                    "prompt": self.prompt_ends(batch).float().cpu(),
                    "ranks": bank.activations,
                    "label": torch.tensor([predictor.labels.index(one.label) for one in found]),
                    "max_probability": 1.0 - doubts.pop("probability"),
                    **doubts,
                }
            )
        back = torch.tensor(order).argsort()
        return {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}

    @torch.inference_mode()
    def prompt_ends(self, prompts: Sequence[Prompt]) -> Tensor:
        """The frozen model's hidden state at the end of each prompt, `[B, d]`.

        As the last layer reads it: no row sees the padding behind it.
        """
        ids, lengths = right_padded([prompt.prompt_ids for prompt in prompts])
        found = self._trunk(ids.to(self._trunk.device), output_hidden_states=True, use_cache=False)
        states: Tensor = found.hidden_states[-2]  # the last one is what the final norm returns
        return states[torch.arange(len(prompts)), lengths - 1]


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
