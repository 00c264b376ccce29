"""The labelled inputs that a command scores an adapter on, or tests it with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dalorra.errors import ConfigError

if TYPE_CHECKING:
    from dalorra.adapter.manifest import Manifest
    from dalorra.questions import Question
    from training.data import Data
    from training.tasks import Example, Task


@dataclass(frozen=True, slots=True)
class Labelled:
    """Examples, and what is to be known of them.

    Attributes:
        examples: that a label answers; those to calibrate on may have others among them.
        source: what they are, in words.
        outside: that none answers.
        out_of_scope: labels that say so.
        new_kinds: kinds of questions that the adapter was not trained on; None where the inputs
            are no questions of its run.
    """

    examples: "Sequence[Example]"
    source: str
    outside: "Sequence[Example]" = ()
    out_of_scope: tuple[str, ...] = ()
    new_kinds: tuple[str, ...] | None = field(default=None)


@dataclass(frozen=True, slots=True)
class Place:
    """Where labelled inputs are: by default where those are that the adapter was trained for.

    Attributes:
        adapter: its folder.
        data: file or folder; None: the hub.
        task: another task than the adapter's.
        split: another split than the task's.
    """

    adapter: Path
    data: Path | None = None
    task: str | None = None
    split: str | None = None

    def to_evaluate(self, manifest: "Manifest") -> Labelled:
        """What an adapter is scored on."""
        from training.data import parted

        if _asks(manifest):
            run = self.questions(manifest.training)
            source = "questions that were not trained on"
            return Labelled(run.test, source, run.outside, new_kinds=_new_kinds(manifest))
        task, split = self._task(manifest.training)
        examples = self._examples(task, split, out_of_scope=True)
        inside, outside = parted(examples, task.out_of_scope)
        return Labelled(inside, f"{task.name} {split}", outside, task.out_of_scope)

    def to_calibrate(self, manifest: "Manifest", out_of_scope: float) -> Labelled:
        """What an adapter is tested with; a share of it may be out of scope."""
        from training.data import mixed, parted
        from training.question_scores import OPEN, source_of_kinds

        if _asks(manifest):
            if out_of_scope:
                raise ConfigError("--out-of-scope is for an adapter with labels of its own")
            examples = self.questions(manifest.training).mixture
            source = source_of_kinds(examples)
            return Labelled(examples, source, (), (OPEN,), _new_kinds(manifest))
        task, split = self._task(manifest.training)
        examples = self._examples(task, split, out_of_scope=out_of_scope > 0.0)
        if out_of_scope:
            examples = mixed(*parted(examples, task.out_of_scope), out_of_scope)
        if self.data is None and split == "train" and manifest.training.get("task") == task.name:
            raise ConfigError(
                "the adapter was trained on that split: name another one with --split"
            )
        source = f"{task.name} {split}"
        source += f", {out_of_scope:.0%} of them out of scope" if out_of_scope else ""
        return Labelled(examples, source, (), task.out_of_scope)

    def of_question(self, question: "Question") -> Labelled:
        """States with the right answers to one question."""
        from training.labelled_questions import read_labelled_states

        if self.data is None or self.task or self.split:
            raise ConfigError(
                "--question needs --data, a file of states and labels, and neither --task nor "
                "--split"
            )
        examples = read_labelled_states(self.data, question)
        return Labelled(examples, f"{self.data.name}, answers to {question.instructions!r}")

    def to_fit(self, manifest: "Manifest") -> "tuple[list[Example], list[Example]]":
        """What an adapter was trained on, and what its run held out."""
        from training.novelty import trained_and_held_out

        if _asks(manifest):
            run = self.questions(manifest.training)
            if run.digest != manifest.training.get("data_digest"):
                raise ConfigError(
                    "these are not the questions that the adapter was trained on: name the data of "
                    "its run with --data"
                )
            return run.train, run.holdout
        task, _ = self._task(manifest.training)
        return trained_and_held_out(manifest.training, self._examples(task, "train"))

    def _task(self, training: Mapping[str, Any]) -> "tuple[Task, str]":
        """The task and the split of its data."""
        from training.tasks import load_labelled_task

        reference = self.task or training.get("task")
        if reference is None:
            raise ConfigError(
                f"{self.adapter} does not say what it was trained on; name a task with --task"
            )
        task = load_labelled_task(reference)
        return task, self.split or task.evaluation_split

    def _examples(self, task: "Task", split: str, *, out_of_scope: bool = False) -> "list[Example]":
        from training.tasks import load_examples

        return load_examples(task, split, self.data, out_of_scope=out_of_scope)

    def questions(self, training: Mapping[str, Any]) -> "Data":
        """Those of the run of an adapter for questions."""
        from pydantic import ValidationError

        from training.config import UNUSED, DataConfig
        from training.question_data import load_questions
        from training.tasks import QuestionTask

        if self.task or self.split:
            raise ConfigError(
                "an adapter for questions is asked those of its own run: leave out --task and "
                "--split"
            )
        try:
            task = QuestionTask.model_validate(training["task"])
            config = training["config"]
            data = DataConfig.model_validate({**UNUSED, **config["data"], "source": self.data})
            seed = int(config["seed"])
        except (KeyError, TypeError, ValidationError) as error:
            raise ConfigError(
                f"{self.adapter} does not say which questions it was trained on: train it again "
                "with this release"
            ) from error
        return load_questions(data, task, seed)


def _asks(manifest: "Manifest") -> bool:
    """Whether the adapter answers questions."""
    from dalorra.question_prompts import QuestionFormat

    return isinstance(manifest.prompt, QuestionFormat)


def _new_kinds(manifest: "Manifest") -> tuple[str, ...]:
    return tuple(manifest.training["task"]["held_out"])
