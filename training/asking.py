"""How a run asks its base model, and what is refused before it starts."""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Final, cast

import torch
from torch import nn

from dalorra.base.families import head_modules, set_head, too_long
from dalorra.base.model import BaseModel
from dalorra.errors import ConfigError
from dalorra.prompts import PromptFormat, PromptTokenizer
from dalorra.question_prompts import QuestionFormat
from training.config import TrainingConfig
from training.tasks import QuestionTask, Task
from training.tasks.chat import chat_format

MOST_NODES: Final = 32
"""Rows of a trie, under every sample, up to which labels that need one are read off it."""

_REFUSED: Final = MappingProxyType(
    {
        "ensemble": "its members would share the one head",
        "laplace": "its curvature is that of label tokens",
    }
)


def prepare(
    config: TrainingConfig, task: Task | QuestionTask, base: BaseModel
) -> PromptFormat | QuestionFormat:
    """How the base model is asked; where labels are classes, it gets the head to be trained.

    An encoder reads the rendered template alone: the answer cue of a task asks a language model.

    Raises:
        ConfigError: a setting that does not go with this kind of base model, or of labels.
    """
    if problem := too_long(base.model, config.adapter.max_tokens):
        raise ConfigError(f"adapter.max_tokens: {base.name} {problem}")
    if isinstance(task, QuestionTask):
        if base.kind == "encoder":
            raise ConfigError(f"task.sets: the encoder {base.name} cannot be asked questions")
        return task.prompt
    prompt = _asked(config, task, base)
    if prompt.by_head:
        _check_head(config, "the encoder's" if base.kind == "encoder" else "a class")
        set_head(base.model, len(task.labels))
        if base.kind != "encoder":
            _start_from_texts(base, tuple(task.labels.values()))
    return prompt


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


@torch.no_grad()
def _start_from_texts(base: BaseModel, texts: Sequence[str]) -> None:
    """A class begins as its label's text would be read off: the mean output row of its tokens."""
    output = cast(nn.Linear, base.model.get_output_embeddings()).weight
    head = cast(nn.Linear, base.model.get_submodule(*head_modules(base.model)))
    for row, text in zip(head.weight, texts, strict=True):
        if ids := base.tokenizer(text, add_special_tokens=False).input_ids:
            row.copy_(output[ids].float().mean(dim=0))


def _asked(config: TrainingConfig, task: Task, base: BaseModel) -> PromptFormat:
    if base.kind != "encoder":
        return _with_labels(asked(task, base), base)
    if task.messages:
        raise ConfigError(f"task.template: nobody chats with the encoder {base.name}")
    if config.adapter.scope != "all_tokens":
        raise ConfigError(
            f"adapter.scope: the encoder {base.name} reads all tokens at once: say all_tokens"
        )
    return task.prompt_format.model_copy(update={"answer_cue": None})


def _with_labels(prompt: PromptFormat, base: BaseModel) -> PromptFormat:
    """Labels whose trie would be too large become classes, where the task leaves the choice."""
    if prompt.labels_by != "auto":
        return prompt
    trie = PromptTokenizer(base.tokenizer, prompt).trie
    many = trie is not None and len(trie.nodes) > MOST_NODES
    return prompt.model_copy(update={"labels_by": "head"}) if many else prompt


def _check_head(config: TrainingConfig, whose: str) -> None:
    if config.bank.head == "integrated":
        raise ConfigError(f"bank.head: {whose} head has no mask to integrate: say sampled")
    if (name := config.method.name) in _REFUSED:
        raise ConfigError(f"method.name: {name} is not for {whose} head, because {_REFUSED[name]}")
