"""What an adapter is trained and scored on: prompts, labels, and where the examples are."""

from training.tasks.builtin import TASKS
from training.tasks.examples import load_examples, load_task, split_off, subsample
from training.tasks.task import Example, HubData, Task

__all__ = [
    "TASKS",
    "Example",
    "HubData",
    "Task",
    "load_examples",
    "load_task",
    "split_off",
    "subsample",
]
