"""The examples of one run: what it trains on, selects with, calibrates on and is scored on."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from dalorra.errors import ConfigError
from training.config import DataConfig, TrainingConfig
from training.orthography import words
from training.promise import Promise, least_examples
from training.tasks import Example, Task, data_digest, load_examples, split_off, subsample

_FIXED_SEED: Final = 0
"""Draws the test and the calibration set: the same for every run's seed, so that whoever picks the
best of several seeds has not picked it on these."""

CALIBRATION_PART: Final = 5
"""One example in so many is set aside to calibrate."""

MOST_CALIBRATION: Final = 2000
"""At most so many are, where the target takes no more."""


@dataclass(frozen=True, slots=True)
class Data:
    """Examples of one run, as they are in the data.

    An input is in one of the first three alone, in whatever spelling where all are trained on.

    Attributes:
        train: trained on.
        holdout: chooses the checkpoint.
        calibration: chooses the thresholds and nothing else; may be empty.
        test: chooses nothing.
        mixture: the calibration examples, or as many of them as go with out-of-scope texts, and
            these.
        outside: out-of-scope texts that choose nothing; may be empty.
    """

    train: list[Example]
    holdout: list[Example]
    calibration: list[Example]
    test: list[Example]
    mixture: list[Example] = field(default_factory=list)
    outside: list[Example] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """`data_digest` of the training examples."""
        return data_digest(self.train)


def load_data(config: TrainingConfig, task: Task) -> Data:
    """The examples that a configuration names.

    Raises:
        ConfigError: they cannot be had, or are too few.
    """
    data = config.data
    loaded = load_examples(task, "train", data.source, out_of_scope=data.out_of_scope > 0)
    examples, outside = parted(loaded, task.out_of_scope)
    size = calibration_size(
        data, len(examples) - (data.evaluation_holdout or 0), config.evaluation.target_error
    )
    divided = divide(examples, data, calibration=size, seed=config.seed)
    mixture = divided.calibration
    if data.out_of_scope:
        mixture = mixed(mixture, outside, data.out_of_scope)
    test, beyond = divided.test, list[Example]()
    if not data.evaluation_holdout:
        split = data.evaluation_split or task.evaluation_split
        loaded = load_examples(task, split, data.source, out_of_scope=True)
        test, beyond = parted(loaded, task.out_of_scope)
    if data.evaluation_limit is not None and data.evaluation_limit < len(test):
        test = subsample(test, data.evaluation_limit, _FIXED_SEED)
    return replace(divided, test=test, mixture=mixture, outside=beyond)


def parted(
    examples: Sequence[Example], out_of_scope: Collection[str]
) -> tuple[list[Example], list[Example]]:
    """Those that a label answers, and those that none does."""
    inside = [example for example in examples if example.label not in out_of_scope]
    return inside, [example for example in examples if example.label in out_of_scope]


def mixed(inside: Sequence[Example], outside: Sequence[Example], share: float) -> list[Example]:
    """The largest part of both in which this share is out of scope.

    Raises:
        ConfigError: there is none.
    """
    odds = share / (1.0 - share)
    within = min(len(inside), round(len(outside) / odds))
    beyond = min(len(outside), round(within * odds))
    if not within or not beyond:
        raise ConfigError(
            f"a share of {share:g} out of scope cannot be had of {len(inside):,} texts that labels "
            f"answer and {len(outside):,} that none does: the task's `out_of_scope` says which"
        )
    return [
        *subsample(inside, within, _FIXED_SEED),
        *subsample(outside, beyond, _FIXED_SEED),
    ]


def calibration_size(data: DataConfig, n: int, target_error: float) -> int:
    """How many of n examples are set aside to calibrate.

    `auto` sets aside one in `CALIBRATION_PART` of them, where that is at least twice what the
    target takes without a mistake; fewer would mostly show nothing, and are better trained on.
    """
    if data.calibration != "auto":
        fraction = isinstance(data.calibration, float)
        return round(data.calibration * n) if fraction else int(data.calibration)
    least = _worthwhile(target_error)
    size = min(n // CALIBRATION_PART, max(MOST_CALIBRATION, least))
    return size if size >= least else 0


def least_to_calibrate(target_error: float) -> int:
    """Examples of a training set from which `auto` sets some aside."""
    return CALIBRATION_PART * _worthwhile(target_error)


def divide(examples: Sequence[Example], data: DataConfig, *, calibration: int, seed: int) -> Data:
    """The parts of a training set; nothing to test where the data do not split that off.

    Args:
        examples: the training set.
        data: how much is held out and trained on.
        calibration: examples to set aside.
        seed: of the run.

    Raises:
        ConfigError: they are too few.
    """
    key = words if data.augment == "orthography" else None
    remaining, test = list(examples), list[Example]()
    if data.evaluation_holdout:
        remaining, test = split_off(remaining, data.evaluation_holdout, _FIXED_SEED, key)
    aside: list[Example] = []
    if calibration:
        remaining, aside = split_off(remaining, calibration, _FIXED_SEED, key)
    remaining, holdout = split_off(remaining, data.holdout, seed, key)
    if data.train_limit is not None:
        remaining = subsample(remaining, data.train_limit, seed)
    return Data(remaining, holdout, aside, test)


def _worthwhile(target_error: float) -> int:
    return 2 * least_examples(target_error, Promise(target_error).confidence)
