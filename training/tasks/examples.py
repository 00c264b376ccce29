"""Loading a task's examples, and taking parts of them reproducibly."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dalorra.errors import ConfigError, first_fault
from dalorra.tables import Record
from training.tasks.builtin import TASKS
from training.tasks.question_task import QuestionTask
from training.tasks.sources import find_file, read_file, read_hub
from training.tasks.task import Example, Task
from training.yaml_file import read_yaml


def load_task(reference: str | Path | Mapping[str, Any]) -> Task | QuestionTask:
    """A built-in task by name, or one of the user's from a YAML file or a mapping.

    Raises:
        ConfigError: no such task or file, or a description that does not hold together.
    """
    if isinstance(reference, Mapping):
        return _validated(reference, "task")
    if str(reference) in TASKS:
        return TASKS[str(reference)]
    path = Path(reference)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"unknown task {str(reference)!r}: give a YAML file or one of {', '.join(TASKS)}"
        )
    content = read_yaml(path, f"task file {path}")
    if not isinstance(content, dict):
        raise ConfigError(f"task file {path} must hold a mapping such as 'template: …'")
    return _validated(content, f"task file {path}")


def load_labelled_task(reference: str | Path | Mapping[str, Any]) -> Task:
    """The same, of a task with labels of its own.

    Raises:
        ConfigError: there is none, or it is made of questions.
    """
    task = load_task(reference)
    if isinstance(task, QuestionTask):
        raise ConfigError(f"the task {task.name} is made of questions: this needs one with labels")
    return task


def load_examples(
    task: Task | str,
    split: str,
    source: str | Path | None = None,
    *,
    out_of_scope: bool = False,
    choices_apart: bool = False,
) -> list[Example]:
    """Every example of one split, in the order of the data; no record in scope is dropped.

    Args:
        task: a task, or the name of a built-in one.
        split: e.g. `train`, `validation`, `test`.
        source: a folder that holds `<task>/<split>.jsonl` (or `.json`, `.csv`, `.parquet`); one
            such file, read whole whatever the split's name; or None for the hub.
        out_of_scope: take also the records that the task calls out of scope.
        choices_apart: whether each choice of a question is a field, see `Task.with_choices`.

    Raises:
        ConfigError: the data cannot be had, or a record does not fit the task; the message
            names the file, the record, the column, and what was expected.
    """
    if isinstance(task, str):
        task = load_labelled_task(task)
    if task.members:
        return [
            example
            for name in task.members
            for example in _as_member(task, TASKS[name], split, source)
        ]
    read = task.with_choices if choices_apart else task.example
    examples = [read(r.values, r.where) for r in _records(task, split, source)]
    return [e for e in examples if out_of_scope or e.label not in task.out_of_scope]


def split_off(
    examples: Sequence[Example],
    size: int | float,
    seed: int,
    key: Callable[[Example], Example] | None = None,
    *,
    repeats_together: bool = True,
) -> tuple[list[Example], list[Example]]:
    """Holds out part of the examples.

    Which examples are held out depends on their inputs and the seed only, not on their order.
    Equal inputs stay on one side, so nothing held out has been trained on; when that makes the
    exact size impossible, the held-out part is as little smaller as it can be.

    Args:
        examples: e.g. a training set.
        size: how many, or which fraction (0 to 1, exclusive) to hold out.
        seed: another seed holds out others.
        key: examples that it makes equal count as equal inputs; None: those that are.
        repeats_together: without it equal inputs are split like different ones, and both parts are
            like draws from where the examples came from.

    Returns:
        what remains and what is held out, each in the original order.

    Raises:
        ConfigError: `size` leaves one side empty.
    """
    n = len(examples)
    count = round(size * n) if isinstance(size, float) else size
    if not 0 < count < n:
        raise ConfigError(f"cannot hold out {size} of {n} examples: both sides need one at least")
    groups: dict[bytes, list[int]] = defaultdict(list)
    seen: Counter[bytes] = Counter()
    for index, example in enumerate(examples):
        rank = _rank(key(example) if key else example, "split_off", seed)
        seen[rank] += 1
        if not repeats_together and seen[rank] > 1:
            rank = hashlib.sha256(rank + str(seen[rank]).encode()).digest()
        groups[rank].append(index)
    held: set[int] = set()
    for _, members in sorted(groups.items()):
        if len(held) + len(members) <= count:
            held.update(members)
    if not held:
        raise ConfigError(
            f"cannot hold out {count} of {n} examples: every input occurs more often than that"
        )
    return (
        [example for index, example in enumerate(examples) if index not in held],
        [example for index, example in enumerate(examples) if index in held],
    )


def subsample(examples: Sequence[Example], n: int, seed: int) -> list[Example]:
    """`n` of the examples, in the original order; a smaller n takes a subset of a larger one's.

    Raises:
        ConfigError: n is not between 1 and the number of examples.
    """
    if not 1 <= n <= len(examples):
        raise ConfigError(f"cannot take {n} of {len(examples)} examples")
    seen: Counter[bytes] = Counter()
    ranks: list[tuple[bytes, int]] = []
    for index, example in enumerate(examples):
        key = _rank(example, "subsample", seed)
        # Repeats of an input are ranked apart, as if they were different.
        ranks.append((hashlib.sha256(key + str(seen[key]).encode()).digest(), index))
        seen[key] += 1
    return [examples[index] for index in sorted(index for _, index in sorted(ranks)[:n])]


def data_digest(examples: Sequence[Example]) -> str:
    """sha256 over inputs and labels, in order."""
    soft = ([] if e.target is None else [e.target] for e in examples)
    content = json.dumps(
        [[e.content, e.label, *target] for e, target in zip(examples, soft, strict=True)],
        sort_keys=True,
    )
    return hashlib.sha256(content.encode()).hexdigest()


def _rank(example: Example, purpose: str, seed: int) -> bytes:
    """A pseudo-random key of the input: stable across Python versions and machines."""
    content = json.dumps([purpose, seed, sorted(example.content.items())])
    return hashlib.sha256(content.encode()).digest()


def _records(task: Task, split: str, source: str | Path | None) -> list[Record]:
    if source is None:
        return read_hub(task, split)
    path = Path(source)
    if path.is_dir():
        return read_file(find_file(path, task, split))
    if not path.exists():
        raise ConfigError(f"{path} does not exist: give a file, a folder, or nothing for the hub")
    return read_file(path)


def _as_member(mixture: Task, member: Task, split: str, source: str | Path | None) -> list[Example]:
    """A member's examples with its whole prompt as the mixture's one field.

    A cue of its own that differs from the mixture's stays part of that prompt.
    """
    if source is not None and Path(source).is_file():
        raise ConfigError(f"the mixture {mixture.name!r} needs a folder or the hub, not one file")
    if stray := set(member.labels) - set(mixture.labels):
        raise ConfigError(
            f"the mixture {mixture.name!r} lacks {member.name}'s label {min(stray)!r}"
        )
    tail = (member.answer_cue or "") if member.answer_cue != mixture.answer_cue else ""
    return [
        Example({"prompt": member.prompt_format.render(example.texts) + tail}, example.label)
        for example in load_examples(member, split, source)
    ]


def _validated(content: Mapping[str, Any], where: str) -> Task | QuestionTask:
    kind: type[Task | QuestionTask] = QuestionTask if "sets" in content else Task
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{where}: {first_fault(error)}") from error
