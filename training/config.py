"""The configuration of a training run: one small YAML file."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dalorra.adapter.directory import WeightDtype
from dalorra.base.model import DEFAULT_BASE_MODEL
from dalorra.base.quantized import Quantize
from dalorra.errors import ConfigError
from dalorra.posteriors.bank import BankSpec
from dalorra.prompts import Scope
from training.methods import METHODS, AnyMethod, Dalorra
from training.orthography import Augment
from training.tasks import AnyTask, QuestionTask, Task, load_task
from training.yaml_file import parse_yaml, read_yaml


class Section(BaseModel):
    """Settings by name: an unknown name is refused, and nothing changes during a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(Section):
    """Where the examples are.

    Attributes:
        source: None for the hub, or a file or folder, see `training.tasks.load_examples`.
        train_limit: use this many training examples, drawn by seed; None: all.
        augment: `orthography` trains on every example in all its spellings, see
            `training.orthography`, and selects and calibrates on one spelling of each; `none`
            takes all of them as they are. The evaluation split always stays as it is.
        holdout: fraction, or number of examples, split off the training set, by seed, for model
            selection; never trained on.
        calibration: fraction, or number of examples, split off the training set before,
            whatever the seed, that choose the thresholds at the end and nothing else; `auto`: see
            `training.data.calibration_size`; 0: none.
        out_of_scope: share of the calibrating examples that no label answers, taken from the texts
            of the training set that the task calls so. Accepted, each is an error. Of both kinds as
            many are taken as the share allows; 0: of the others all, and none of these.
        evaluation_split: what is scored at the end; None: the split that the task names.
        evaluation_limit: score this many of it, drawn with seed 0; None: all.
        evaluation_holdout: score this many examples, split off the training set whatever the seed,
            in place of a split that is not at hand.
    """

    source: Path | None = None
    train_limit: int | None = Field(default=None, ge=1)
    augment: Augment = "none"
    holdout: float | int = Field(default=0.1, gt=0.0)
    calibration: (
        Literal["auto"]
        | Annotated[int, Field(strict=True, ge=0)]
        | Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)]
    ) = "auto"
    out_of_scope: float = Field(default=0.0, ge=0.0, lt=1.0)
    evaluation_split: str | None = None
    evaluation_limit: int | None = Field(default=None, ge=1)
    evaluation_holdout: int | None = Field(default=None, ge=1)


UNUSED: Final[dict[str, Any]] = {"augment": "none", "calibration": 0, "out_of_scope": 0.0}
"""Values of `DataConfig` that leave the examples as they are. Records of a run leave them out, so
a record without a setting and one with the setting unused are the same run."""


class AdapterConfig(Section):
    """Shape of the adapter (DALorRA, section 5.1: r = 8, α = 16 on q_proj, v_proj and lm_head).

    Attributes:
        modules: linear modules by name; where labels are classes, a head that is trained whole is
            in the place of `lm_head`, which then does not count.
        scope: rows that it acts on.
        last_layers: adapt only the last K layers, and the head; None: all.
        max_tokens: limit on prompt and cue.
        weight_dtype: how A and B are stored.
    """

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0.0)
    modules: tuple[str, ...] = ("q_proj", "v_proj", "lm_head")
    scope: Scope = "answer_tokens"
    last_layers: int | None = Field(default=None, ge=1)
    max_tokens: int = Field(default=300, ge=8)
    weight_dtype: WeightDtype = "bfloat16"


class OptimizerConfig(Section):
    """AdamW with linear decay (DALorRA, appendix A.3).

    Attributes:
        steps: gradient steps.
        batch_size: examples per device and micro-step.
        accumulation: micro-steps per gradient step.
        warmup: fraction of the steps.
    """

    learning_rate: float = Field(default=1e-4, gt=0.0)
    weight_decay: float = Field(default=0.0, ge=0.0)
    steps: int = Field(default=5000, ge=1)
    batch_size: int = Field(default=4, ge=1)
    accumulation: int = Field(default=1, ge=1)
    warmup: float = Field(default=0.06, ge=0.0, lt=1.0)
    max_grad_norm: float = Field(default=1.0, gt=0.0)


class EvaluationConfig(Section):
    """Evaluation on the hold-out during training.

    Attributes:
        every: gradient steps between evaluations and checkpoints.
        keep_best: finish with the checkpoint of lowest hold-out NLL instead of the last one.
        target_error: largest error among accepted answers, with 95 % confidence, that the run
            calibrates the adapter for where it has examples for it, see `DataConfig.calibration`;
            else it says what that takes.
        novelty: fit a novelty score; a calibrated policy then has a level for it.
        novelty_augment: whether an input is novel for its spelling alone, see
            `training.orthography`; `none` fits the inputs as they are.
    """

    every: int = Field(default=500, ge=1)
    keep_best: bool = True
    target_error: float = Field(default=0.05, gt=0.0, lt=1.0)
    novelty: bool = False
    novelty_augment: Augment = "orthography"


class TrainingConfig(Section):
    """One run.

    Attributes:
        task: name of a built-in task, a YAML file that describes one, or the description itself,
            of a task with labels or of one that is made of questions.
        quantize: `8bit` or `4bit` keeps the linear modules of the base model in that.
        prompt_cache_gib: memory for the prompts' keys and values, which under `answer_tokens` are
            the same in every epoch; those that do not fit are computed again.
        report_to: logging back-ends of `transformers.Trainer`, e.g. `tensorboard`.
    """

    name: str
    output_dir: Path
    task: AnyTask
    base_model: str = DEFAULT_BASE_MODEL
    device: str = "auto"
    dtype: str = "auto"
    quantize: Quantize = Field(default="none", exclude_if=lambda value: value == "none")
    seed: int = 1
    data: DataConfig = DataConfig()
    adapter: AdapterConfig = AdapterConfig()
    method: AnyMethod = Dalorra()
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    bank: BankSpec = BankSpec()
    prompt_cache_gib: float = Field(default=4.0, ge=0.0)
    report_to: tuple[str, ...] = ()

    def resolved_task(self) -> Task | QuestionTask:
        """The task itself.

        Raises:
            ConfigError: no task has that name.
        """
        return load_task(self.task) if isinstance(self.task, str) else self.task


def read_config(path: Path, overrides: dict[str, str] | None = None) -> TrainingConfig:
    """Reads a YAML file; `overrides` maps dotted names to YAML values, e.g. `optimizer.steps`.

    Raises:
        ConfigError: not readable, not YAML, an unknown name or an impossible value.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no mapping: write `name: value` lines")
    for dotted, value in (overrides or {}).items():
        try:
            _set(content, dotted.split("."), parse_yaml(value))
        except yaml.YAMLError as error:
            raise ConfigError(f"{dotted}: {value!r} is not a YAML value") from error
    try:
        return TrainingConfig.model_validate(content)
    except ValidationError as error:
        # A task that is written out is tried as a name, too: the deepest error is the task's own.
        raise ConfigError(f"{path}: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """Where a configuration is wrong, and how; beside an unknown name, the one that is like it."""
    first = sorted(error.errors(), key=lambda found: len(found["loc"]))[-1]
    loc, message = first["loc"], _IN_WORDS.get(first["type"], first["msg"])
    if first["type"] == "extra_forbidden":
        *above, unknown = loc
        names, sections = _along(above)
        names.append(str(unknown))
        settings = [name for section in sections for name in section.model_fields]
        close = difflib.get_close_matches(str(unknown), settings, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(settings)}"
        message = f"there is no such setting; {hint}"
    elif first["type"] == "union_tag_invalid":
        names = [*map(str, loc), "name"]
        known = ", ".join(method.key() for method in METHODS)
        message = f"{first['ctx']['tag']!r} is none of {known}"
    else:
        names, _ = _along(loc)
    return f"{'.'.join(names)}: {message}"


_IN_WORDS: Final = {
    "model_type": "should be a section: `name: value` lines",
    "tuple_type": "should be a list",
}
"""Where pydantic speaks of its own classes."""

_MEMBERS: Final[dict[object, type[BaseModel]]] = {
    Task.__name__: Task,
    QuestionTask.__name__: QuestionTask,
    **{method.key(): method for method in METHODS},
}
"""What pydantic calls those that a section may be, on the way to its settings."""


def _along(loc: Sequence[int | str]) -> tuple[list[str], list[type[BaseModel]]]:
    """The names of the file on the way that pydantic gives, and the sections at its end.

    Between them pydantic says which member of a union it tried: that is no name in the file.
    """
    names: list[str] = []
    annotation: Any = TrainingConfig
    for part in loc:
        sections = _sections(annotation)
        if _MEMBERS.get(part) in sections:
            annotation = _MEMBERS[part]
        elif fields := [s.model_fields[part] for s in sections if part in s.model_fields]:
            names.append(str(part))
            annotation = fields[0].annotation
        elif get_origin(annotation) not in (Union, UnionType):  # an index, or a key of a mapping
            names.append(str(part))
    return names, _sections(annotation)


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """Those that a value of this type may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections(inner)]


def _set(content: dict[str, Any], names: list[str], value: Any) -> None:
    for name in names[:-1]:
        content = content.setdefault(name, {})
        if not isinstance(content, dict):
            raise ConfigError(f"{'.'.join(names)} is inside {name!r}, which is not a section")
    content[names[-1]] = value
