"""How a run asks its base model, and what is refused before it starts."""

from types import MappingProxyType
from typing import Final

from dalorra.base.families import set_head, too_long
from dalorra.base.model import BaseModel
from dalorra.errors import ConfigError
from dalorra.prompts import PromptFormat
from training.config import TrainingConfig
from training.tasks import Task
from training.tasks.chat import chat_format

_REFUSED: Final = MappingProxyType(
    {
        "ensemble": "its members would share the encoder's one head",
        "laplace": "its curvature is that of label tokens",
    }
)


def prepare(config: TrainingConfig, task: Task, base: BaseModel) -> PromptFormat:
    """How the base model is asked; an encoder also gets the head that will be trained.

    An encoder reads the rendered template alone: the answer cue of a task asks a language model.

    Raises:
        ConfigError: a setting that does not go with this kind of base model.
    """
    if problem := too_long(base.model, config.adapter.max_tokens):
        raise ConfigError(f"adapter.max_tokens: {base.name} {problem}")
    if base.kind != "encoder":
        return asked(task, base)
    if task.messages:
        raise ConfigError(f"task.template: nobody chats with the encoder {base.name}")
    _check(config, base)
    set_head(base.model, len(task.labels))
    return task.prompt_format.model_copy(update={"answer_cue": None})


def asked(task: Task, base: BaseModel) -> PromptFormat:
    """How a language model is asked.

    Raises:
        ConfigError: the task lacks an answer cue, or its messages are not for this model.
    """
    if task.messages:
        return chat_format(task.messages, task.prompt_format, base.tokenizer, base.name)
    if task.answer_cue is None:
        raise ConfigError(
            f"task.answer_cue: the language model {base.name} needs one, such as '\\nAnswer:'"
        )
    return task.prompt_format


def _check(config: TrainingConfig, base: BaseModel) -> None:
    if config.adapter.scope != "all_tokens":
        raise ConfigError(
            f"adapter.scope: the encoder {base.name} reads all tokens at once: say all_tokens"
        )
    if config.bank.head == "integrated":
        raise ConfigError("bank.head: an encoder's head has no mask to integrate: say sampled")
    if (name := config.method.name) in _REFUSED:
        raise ConfigError(f"method.name: {name} is not for encoders, because {_REFUSED[name]}")
