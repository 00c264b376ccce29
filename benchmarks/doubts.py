"""What tells an input that leaves its label open from one that the model does not know.

    python -m benchmarks.doubts ADAPTER ADAPTER ADAPTER --data FOLDER [--answers FOLDER]
    dalorra report benchmarks/results/experiments

Adapters of sst2, trec and ag_news are asked about inputs that are one or the other by construction
(`benchmarks.doubtful`), made of examples that none was trained or selected on. An adapter whose
policy accepts nothing is calibrated on others of these examples, in memory. One half of the inputs
chooses side and threshold of each measure, the other measures; no text serves in both. FOLDER
holds `<task>/<split>.jsonl`; with `--answers`, what the adapters say is kept in a file for each
task and taken from it the next time.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.doubt_measures import HALVES, Doubt, Group, Half, Study, compared, decided
from benchmarks.doubt_section import drawn, section
from benchmarks.doubtful import Kinds, Labelled, ambiguous, unknown
from benchmarks.languages import REVIEWS
from benchmarks.report import arguments, print_table, save_figure, write_json
from dalorra.adapter.directory import read_adapter
from dalorra.predictor import Predictor
from training.answers import answer
from training.calibrate import calibrate
from training.config import DataConfig, TrainingConfig
from training.data import load_data
from training.novelty import novelty_limit
from training.promise import Promise
from training.tasks import Example, load_labelled_task

SOURCES: Final = 200
"""Usual inputs that each half is made of; the others of an adapter's test set calibrate."""

PAIRS, SPOILT = 50, 38
"""Of each half: inputs of each kind that is ambiguous (three), and unknown (four)."""

PROMISE: Final = Promise(0.05)


def main() -> None:
    """Asks, and writes the JSON, the figure and the part of `docs/results.md`."""
    parser = arguments(__doc__, "doubts")
    parser.add_argument("adapters", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--answers", type=Path, help="folder that keeps what the adapters say")
    parser.add_argument("--seed", type=int, default=0)
    default = Path("benchmarks/results/experiments/doubts/SECTION.md")
    parser.add_argument("--out", type=Path, default=default)
    options = parser.parse_args()
    unseen = {path: unseen_examples(path, options.data) for path in options.adapters}
    studies = [kept(options.answers, path, unseen, options.seed) for path in options.adapters]
    measured, judged = compared(studies), decided(studies)
    print_table("Measures", measured, ("measure", "task", "half", "auroc", "threshold"))
    print_table("Decisions", judged, ("task", "half", "kind", "accept", "escalate", "clarify"))
    write_json(options.json, [*measured, *judged])
    save_figure(drawn(studies, measured), options.json.with_suffix(".png"))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(section([*measured, *judged]), "utf-8")


def unseen_examples(adapter: Path, data: Path) -> list[Example]:
    """Of an adapter's task, those that its run only measured on."""
    training = read_adapter(adapter).manifest.training
    of_run = training["config"]
    config = TrainingConfig(
        name=adapter.name,
        output_dir=adapter,
        task=training["task"],
        seed=of_run["seed"],
        data=DataConfig(**{**of_run["data"], "source": data, "evaluation_limit": None}),
    )
    return load_data(config, load_labelled_task(training["task"])).test


def kept(
    folder: Path | None, adapter: Path, unseen: Mapping[Path, Sequence[Example]], seed: int
) -> Study:
    """What an adapter says, from its file in the folder if it is there."""
    task = read_adapter(adapter).manifest.training["task"]
    path = folder and folder / f"{task}.json"
    if path and path.exists():
        return Study.read(path)
    study = ask(adapter, task, unseen, seed)
    if path:
        study.save(path)
    return study


def ask(adapter: Path, task: str, unseen: Mapping[Path, Sequence[Example]], seed: int) -> Study:
    """All inputs of one adapter with its answers, and the policy that it is judged with."""
    predictor = Predictor.load(adapter)
    examples = {path: _mixed(some, seed) for path, some in unseen.items()}
    if predictor.policy.never_accepts:
        calibrate(
            predictor,
            examples[adapter][len(HALVES) * SOURCES :],
            PROMISE,
            source="a benchmark's own",
            min_novelty_p=novelty_limit(predictor.novelty, None, PROMISE.confidence)[0],
        )
    asked: list[tuple[Half, Group, str, str]] = []
    for n, half in enumerate(HALVES):
        part = slice(n * SOURCES, (n + 1) * SOURCES)
        usual = [_labelled(example) for example in examples[adapter][part]]
        others = [
            _labelled(e)[0] for path in unseen if path != adapter for e in examples[path][part]
        ]
        texts = [text for text, _ in usual]
        groups: dict[Group, Kinds] = {
            "usual": {"usual": texts},
            "ambiguous": ambiguous(task, usual, PAIRS, seed + n),
            "unknown": unknown(texts, others, REVIEWS[n :: len(HALVES)], SPOILT, seed + n),
        }
        asked += [
            (half, group, kind, text)
            for group, kinds in groups.items()
            for kind, texts in kinds.items()
            for text in texts
        ]
    of_text = [Example({"text": text}, "") for *_, text in asked]
    predictions = answer(predictor, of_text, mean_mask=False, quiet=False).sampled
    doubts = [Doubt(*made, said) for made, said in zip(asked, predictions, strict=True)]
    return Study(task, predictor.policy, doubts)


def _mixed(examples: Sequence[Example], seed: int) -> list[Example]:
    return random.Random(seed).sample(examples, len(examples))


def _labelled(example: Example) -> Labelled:
    return next(iter(example.texts.values())).strip(), example.label


if __name__ == "__main__":
    main()
