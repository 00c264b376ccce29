"""What an adapter's policy accepts of inputs that it was not made for.

    python -m benchmarks.far_inputs ADAPTER … --data FOLDER [--examples N] [--json OUT]

Each adapter was trained with novelty features on examples of FOLDER, `<task>/<split>.jsonl`, and
calibrated. Asked are its own kind of inputs, which neither trained nor selected it, texts of other
tasks (`benchmarks.shifts`), and the texts of many kinds (`training.off_domain`), which may have
picked its novelty level. The thresholds stay; the level is the policy's own, then that of each
share that calibration may pick, then none.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from benchmarks.report import Line, arguments, markdown_table, print_table, write_json
from benchmarks.shifts import shifted
from dalorra.adapter.directory import Adapter, attached, read_adapter
from dalorra.base.model import load_base_model
from dalorra.decision.novelty import SHARES, Novelty
from dalorra.decision.policy import Decision, Policy
from dalorra.decision.predictive import Prediction
from dalorra.errors import ConfigError
from dalorra.predictor import Predictor
from training.novelty import trained_and_held_out
from training.off_domain import off_domain_texts
from training.tasks import Example, Task, load_examples, load_labelled_task, subsample

_KIND: Final = "off domain: "
_GROUPS: Final[dict[str, Callable[[str], bool]]] = {
    "usual inputs": "usual".__eq__,
    "news (ag_news)": "ag_news".__eq__,
    "questions (trec)": "trec".__eq__,
    "reviews (rotten_tomatoes)": "rotten_tomatoes".__eq__,
    "school exams (arc)": "arc".__eq__,
    "random tokens": "random".__eq__,
    "texts of 16 kinds, mean": lambda inputs: inputs.startswith(_KIND),
}


def main() -> None:
    """Asks every adapter and writes the JSON."""
    parser = arguments(__doc__, "far_inputs")
    parser.add_argument("adapters", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=300, help="of each kind of inputs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    adapters = [calibrated(path) for path in options.adapters]  # all of them, before any is asked
    lines = [
        line
        for adapter in adapters
        for line in asked(*adapter, options.data, options.examples, options.seed)
    ]
    print_table("Far inputs", lines, ("adapter", "share", "inputs", "novel", "accepted"))
    write_json(options.json, lines)


def calibrated(path: Path) -> tuple[Adapter, Policy, Novelty]:
    """An adapter whose policy accepts something, and that knows what is novel.

    Raises:
        ConfigError: it is none.
    """
    adapter = read_adapter(path)
    policy, novelty = adapter.policy, adapter.novelty
    if novelty is None or policy is None or policy.never_accepts:
        raise ConfigError(f"{path} has no novelty features, or its policy accepts nothing")
    return adapter, policy, novelty


def asked(
    adapter: Adapter, policy: Policy, novelty: Novelty, data: Path, count: int, seed: int
) -> Iterator[dict[str, Any]]:
    """The lines of one adapter."""
    record = adapter.manifest.training
    task, base = (
        load_labelled_task(record["task"]),
        load_base_model(adapter.manifest.base_model.name),
    )
    with attached(adapter, base) as model:
        predictor = Predictor.of(adapter, base, model)
    usual, known = _usual(task, record, data, count, seed)
    vocabulary = base.tokenizer.backend_tokenizer
    texts = {"usual": usual, **shifted(data, usual, known, vocabulary, count, seed)}
    texts |= {f"{_KIND}{kind}": some for kind, some in off_domain_texts().items()}
    texts.pop(task.name, None)
    answers = {
        name: predictor.predict([predictor.encode(text) for text in some])
        for name, some in texts.items()
    }
    yield from taken(answers, policy, novelty, adapter.manifest.name)


def _usual(
    task: Task, record: dict[str, Any], data: Path, count: int, seed: int
) -> tuple[list[str], list[str]]:
    """Texts that neither trained nor selected the adapter, and those that did."""
    examples = load_examples(task, "train", data)
    trained, held_out = (_texts(part) for part in trained_and_held_out(record, examples))
    known = {*trained, *held_out}
    rest = [example for example in examples if _text(example) not in known]
    if not rest:
        rest = load_examples(task, task.evaluation_split, data)
    return _texts(subsample(rest, min(count, len(rest)), seed)), [*known]


def _text(example: Example) -> str:
    return next(iter(example.texts.values()))


def _texts(examples: Sequence[Example]) -> list[str]:
    return [_text(example) for example in examples]


def taken(
    answers: dict[str, Sequence[Prediction]], policy: Policy, novelty: Novelty, name: str
) -> Iterator[dict[str, Any]]:
    """A line for each level and kind of inputs: the shares that are novel and accepted.

    `share` is what the level promises of usual inputs, None for the policy's own.
    """
    confidence = policy.confidence or 0.95
    least = novelty.least_share(confidence)
    levels = {None: policy.min_novelty_p, 0.0: None}
    levels |= {s: novelty.level(s, confidence) for s in SHARES if s >= least}
    for share, level in levels.items():
        own = policy.model_copy(update={"min_novelty_p": level})
        for inputs, some in answers.items():
            accepted = [own.decide(one).decision is Decision.ACCEPT for one in some]
            yield {
                "adapter": name,
                "share": share,
                "level": level,
                "inputs": inputs,
                "n": len(some),
                "novel": sum(own.novel(one.novelty) for one in some) / len(some),
                "accepted": sum(accepted) / len(some),
            }


def section(lines: Sequence[Line]) -> str:
    """Markdown of what `main` wrote."""
    first = lines[0]
    adapters = list(dict.fromkeys(line["adapter"] for line in lines))
    shares = list(dict.fromkeys(line["share"] for line in lines))
    by = {
        (adapter, share): [x for x in lines if (x["adapter"], x["share"]) == (adapter, share)]
        for adapter in adapters
        for share in shares
    }
    rows = []
    for adapter in adapters:
        for name, kept in _GROUPS.items():
            cells = [[x for x in by[adapter, share] if kept(x["inputs"])] for share in shares]
            if cells[0]:
                shown = (f"{fmean(x['accepted'] for x in some):.0%}" for some in cells)
                rows.append((adapter, name, *shown))
        novel = [x["novel"] for s in shares for x in by[adapter, s] if x["inputs"] == "usual"]
        rows.append((adapter, "*usual inputs that are novel*", *(f"{x:.1%}" for x in novel)))
    levels = ("as calibrated", "no level", *(f"{share:.0%}" for share in shares[2:]))
    table = markdown_table(("adapter", "accepted of", *levels), rows)
    return f"""## Far inputs, adapter by adapter

`python -m benchmarks.far_inputs`: what calibrated adapters accept ({first["n"]} usual inputs), by
the share of usual inputs that may be escalated for novelty. *Texts of 16 kinds* are those that pick
the share where none is asked for; the others had no part in it.

{table}
"""


if __name__ == "__main__":
    main()
