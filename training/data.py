"""The examples of one run: what it trains on, what it selects with, what it is scored on."""

from dataclasses import dataclass

from training.config import TrainingConfig
from training.tasks import Example, Task, data_digest, load_examples, split_off, subsample

_TEST_SEED = 0  # the same test set for every run's seed


@dataclass(frozen=True, slots=True)
class Data:
    """Examples of one run; the hold-out is never trained on, the test set never selected on."""

    train: list[Example]
    holdout: list[Example]
    test: list[Example]

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
    examples = load_examples(task, "train", data.source)
    if data.evaluation_holdout:
        examples, test = split_off(examples, data.evaluation_holdout, _TEST_SEED)
    else:
        split = data.evaluation_split or task.evaluation_split
        test = load_examples(task, split, data.source)
    if data.evaluation_limit is not None and data.evaluation_limit < len(test):
        test = subsample(test, data.evaluation_limit, _TEST_SEED)
    remaining, holdout = split_off(examples, data.holdout, config.seed)
    if data.train_limit is not None:
        remaining = subsample(remaining, data.train_limit, config.seed)
    return Data(remaining, holdout, test)
