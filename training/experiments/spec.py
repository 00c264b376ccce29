"""What an experiment is: variants × tasks × seeds, described in one YAML file."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from dalorra.errors import ConfigError, first_fault
from training.config import Section, TrainingConfig, first_problem
from training.yaml_file import read_yaml

EXPERIMENT_FILE = "experiment.yaml"


class Shift(Section):
    """Other data that a trained adapter is asked about.

    Attributes:
        task: its task. Where that has the adapter's labels the answers are scored; elsewhere there
            is no right answer, and what counts is whether the uncertainty is higher.
        split: of the data; None: the task's own.
        limit: ask about this many, drawn with seed 0; None: all.
    """

    task: str
    split: str | None = None
    limit: int | None = Field(default=None, ge=1)


class TaskSetting(Section):
    """One data set and how it is used.

    Attributes:
        name: of the setting in tables, such as `sst2, 640`.
        config: what it changes in the experiment's configuration, `task` included.
        seeds: one run each.
        shifts: other data to ask about.
        inputs: texts to ask about, answers kept one by one.
        plane: keep where so many test examples, the shifts and the inputs lie in two dimensions;
            0: not at all. For methods that answer from one network, which excludes `laplace`.
        score_test: whether to look at the test set at all; a study that chooses settings must not.
        tempered: score the test set once more, at the temperature that fits the hold-out best.
    """

    name: str
    config: dict[str, Any]
    seeds: tuple[int, ...] = Field(default=(1,), min_length=1)
    shifts: tuple[Shift, ...] = ()
    inputs: tuple[str, ...] = ()
    plane: int = Field(default=0, ge=0)
    score_test: bool = True
    tempered: bool = False


class Variant(Section):
    """One system that is compared.

    Attributes:
        name: of the system in tables.
        config: what it changes in the configuration of a task, `method` included.
        tasks: names of the settings it takes part in; None: all.
        seeds: at most these seeds; None: those of the task.
        at: place on the experiment's axis, where it has one.
        series: which curve that point belongs to.
    """

    name: str
    config: dict[str, Any]
    at: float | None = None
    series: str = ""
    tasks: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None


class Experiment(Section):
    """A comparison of variants under one protocol.

    Attributes:
        name: of the experiment.
        question: what it asks, in one sentence.
        config: what all runs share, see `training.config.TrainingConfig`.
        axis: name of what varies, where variants are points of a curve.
    """

    name: str
    question: str
    axis: str | None = None
    config: dict[str, Any]
    tasks: tuple[TaskSetting, ...] = Field(min_length=1)
    variants: tuple[Variant, ...] = Field(min_length=1)

    def runs(self) -> Iterator["RunSpec"]:
        """Every run: first seeds first, so that an experiment that is cut short compares all tasks.

        All variants of a task and seed follow each other, since they share prompts.
        """
        for turn in range(max(len(task.seeds) for task in self.tasks)):
            for task in self.tasks:
                for seed in task.seeds[turn : turn + 1]:
                    yield from self._variants(task, seed)

    def _variants(self, task: TaskSetting, seed: int) -> Iterator["RunSpec"]:
        for variant in self.variants:
            if variant.tasks is not None and task.name not in variant.tasks:
                continue
            if variant.seeds is None or seed in variant.seeds:
                yield RunSpec(self, task, variant, seed)


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One training run of an experiment."""

    experiment: Experiment
    task: TaskSetting
    variant: Variant
    seed: int

    @property
    def key(self) -> str:
        """Its folder, relative to the experiment's."""
        parts = (self.task.name, self.variant.name, f"seed-{self.seed}")
        return "/".join(_slug(part) for part in parts)

    def config(self, folder: Path, overrides: Mapping[str, Any]) -> TrainingConfig:
        """Its configuration: the experiment's, changed by the task, the variant and `overrides`.

        It compares answers and not decisions, so no examples are set aside to calibrate, unless
        it says so.

        Raises:
            ConfigError: they do not make one.
        """
        content: dict[str, Any] = {"data": {"calibration": 0}}
        for layer in (self.experiment.config, self.task.config, self.variant.config, overrides):
            content = _merged(content, layer)
        content |= {"name": self.key, "output_dir": str(folder / self.key), "seed": self.seed}
        try:
            return TrainingConfig.model_validate(content)
        except ValidationError as error:
            raise ConfigError(
                f"experiment {self.experiment.name}, {self.key}: {first_problem(error)}"
            ) from error


def load_experiment(reference: str) -> Experiment:
    """A shipped experiment by name, or one of the user's from a YAML file.

    Raises:
        ConfigError: there is none, or its description does not hold together.
    """
    shipped = experiments()
    path = shipped.get(reference) or Path(reference)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"unknown experiment {reference!r}: give a YAML file or one of {', '.join(shipped)}"
        )
    try:
        return Experiment.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_fault(error)}") from error


def save_experiment(experiment: Experiment, folder: Path) -> None:
    """Keeps the description with the results, where the report reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    content = experiment.model_dump(mode="json", exclude_defaults=True)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    (folder / EXPERIMENT_FILE).write_text(text, encoding="utf-8")


def experiments() -> dict[str, Path]:
    """Shipped experiments: name → file."""
    folder = Path(str(files("training.experiments") / "specs"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with the values of `above`, section by section; a named method replaces another."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        same_method = key != "method" or not isinstance(value, dict) or "name" not in value
        if isinstance(old, dict) and isinstance(value, dict) and same_method:
            result[key] = _merged(old, value)
        else:
            result[key] = value
    return result


def _slug(text: str) -> str:
    return "-".join("".join(c if c.isalnum() or c in "._" else " " for c in text).split())
