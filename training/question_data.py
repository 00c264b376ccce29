"""The questions of one run: what it trains on, selects with and is scored on.

The records are divided first and the questions drawn then, so that no record is on two sides. A
record that is evaluated on is trained on in no set, whatever the spelling of its text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from dalorra.errors import ConfigError
from training.config import DataConfig
from training.data import Data
from training.orthography import words
from training.tasks import TASKS, Example, load_examples, split_off, subsample
from training.tasks.drawing import Drawing
from training.tasks.question_task import QuestionTask
from training.tasks.recipe import recipes

_FIXED_SEED: Final = 0
"""Draws what is evaluated on, whatever the seed of the run."""

LEAST_CALIBRATION: Final = 10
"""Questions without which no thresholds are chosen: one of them declares which are tested."""

TEST_PART: Final = 0.2
"""Share of a set's records that is only evaluated on."""


@dataclass(frozen=True, slots=True)
class _Set:
    """Records of a data set, and how questions about them are drawn."""

    name: str
    drawing: Drawing
    items: Sequence[Example]


def load_questions(data: DataConfig, task: QuestionTask, seed: int) -> Data:
    """The examples of a run.

    Half of the questions about held-out sets choose the thresholds; the others, and those about
    records of the trained sets that were kept apart, are evaluated on.

    Args:
        data: where the records are.
        task: which of them are asked about.
        seed: of the run.

    Raises:
        ConfigError: they cannot be had, are too few, or a setting does not go with questions.
    """
    _check(data)
    test, rest = [], []
    for name in task.sets:
        read = _read(name, task, data.source)
        remaining, kept = split_off(read.items, TEST_PART, _FIXED_SEED)
        test.append(_Set(name, read.drawing, kept))
        rest.append(_Set(name, read.drawing, remaining))
    test += [_read(name, task, data.source) for name in task.held_out]
    tested_texts = {_text(item) for part in test for item in part.items}
    train, holdout = [], []
    for part in rest:
        unseen = [item for item in part.items if _text(item) not in tested_texts]
        remaining, kept = split_off(unseen, data.holdout, seed)
        train.append(_Set(part.name, part.drawing, remaining))
        holdout.append(_Set(part.name, part.drawing, kept))
    trained = questions_about(train, task.per_set, task.elsewhere, seed, repeat=True)
    if data.train_limit is not None and data.train_limit < len(trained):
        trained = subsample(trained, data.train_limit, seed)
    selecting = questions_about(holdout, task.evaluated, 0.0, seed)
    asked = questions_about(test, task.evaluated, task.elsewhere, _FIXED_SEED)
    new = [example for example in asked if example.kind in task.held_out and _judged(example)]
    calibration: list[Example] = []
    if task.held_out:
        _, calibration = split_off(new, 0.5, _FIXED_SEED)
        if len(calibration) < LEAST_CALIBRATION:
            raise ConfigError(
                f"task.held_out: {len(new)} questions about these sets are too few to choose "
                f"thresholds on half of them: there must be {2 * LEAST_CALIBRATION} at least"
            )
    chosen = set(map(id, calibration))
    tested = [example for example in asked if id(example) not in chosen]
    if data.evaluation_limit is not None and data.evaluation_limit < len(tested):
        tested = subsample(tested, data.evaluation_limit, _FIXED_SEED)
    return Data(
        trained,
        [example for example in selecting if example.label],
        [example for example in calibration if example.label],
        [example for example in tested if example.label],
        calibration,
        [example for example in tested if not example.label and _judged(example)],
    )


def questions_about(
    sets: Sequence[_Set], count: int, elsewhere: float, seed: int, *, repeat: bool = False
) -> list[Example]:
    """So many questions about each set.

    Args:
        sets: one or more.
        count: questions about each.
        elsewhere: share of them that is asked about a state of another of the sets.
        seed: of all draws.
        repeat: whether a record is asked about again where there are fewer records than questions.
    """
    found = []
    for place, part in enumerate(sets):
        others = [*sets[:place], *sets[place + 1 :]]
        items = list(part.items)
        Random(f"{seed} {part.name}").shuffle(items)  # noqa: S311 - draws, not secrets
        for number in range(count if repeat else min(count, len(items))):
            dice = Random(f"{seed} {part.name} {number}")  # noqa: S311
            item = items[number % len(items)]
            if not others or dice.random() >= elsewhere:
                drawn, state = part.drawing.draw(item, dice)
                found.append(drawn.about(state, part.name))
                continue
            drawn, _ = part.drawing.draw(item, dice, of_record=True)
            other = dice.choice(others)
            _, state = other.drawing.draw(dice.choice(other.items), dice, of_record=True)
            found.append(drawn.about_another(state, part.name))
    return found


def _read(reference: str, task: QuestionTask, source: Path | None) -> _Set:
    """A set with the records that questions can be drawn from."""
    name, _, split = reference.partition("/")
    if name not in recipes():
        raise ConfigError(
            f"no recipe makes questions of {name!r}: there are {', '.join(sorted(recipes()))}"
        )
    labelled = TASKS[name]
    items = load_examples(
        labelled, split or "train", source, out_of_scope=recipes()[name].none, choices_apart=True
    )
    drawing = Drawing(recipes()[name], labelled)
    usable = [
        item
        for item in items
        if sum(map(len, item.texts.values())) <= task.longest_state and drawing.can_ask(item)
    ]
    return _Set(reference, drawing, usable)


def _text(item: Example) -> str:
    """What a record says, the same for all its spellings and whatever its columns are called."""
    return " ".join(sorted(words(item).texts.values()))


def _judged(example: Example) -> bool:
    """Whether it is known which answers are right: one, or none more than the others."""
    return bool(example.label) or len(set(example.target or ())) == 1


def _check(data: DataConfig) -> None:
    """Refuses settings that would change nothing."""
    ignored: Mapping[str, bool] = {
        "calibration": data.calibration not in ("auto", 0),
        "evaluation_split": data.evaluation_split is not None,
        "evaluation_holdout": data.evaluation_holdout is not None,
    }
    if given := next((name for name, is_set in ignored.items() if is_set), None):
        raise ConfigError(
            f"data.{given}: questions are evaluated and calibrated on parts of their own: leave it "
            "out, and name sets under task.held_out"
        )
