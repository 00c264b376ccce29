"""What an adapter is trained and scored on: prompts, labels, and where the examples are."""

from training.tasks.builtin import TASKS
from training.tasks.examples import (
    data_digest,
    load_examples,
    load_labelled_task,
    load_task,
    split_off,
    subsample,
)
from training.tasks.question_task import AnyTask, QuestionTask
from training.tasks.task import Example, Task

__all__ = [
    "TASKS",
    "AnyTask",
    "Example",
    "QuestionTask",
    "Task",
    "data_digest",
    "load_examples",
    "load_labelled_task",
    "load_task",
    "split_off",
    "subsample",
]
