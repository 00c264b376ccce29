"""What a conversation that was made a prompt format must be like, whatever the chat template."""

from transformers import PreTrainedTokenizerBase

from dalorra.prompts import PromptTokenizer
from training.tasks import Task
from training.tasks.chat import chat_format

MESSAGES = (
    {"role": "system", "content": "You read {kind} reviews {{with care}}."},
    {"role": "user", "content": "Review: {sentence}"},
)


def chat_task(**changes: object) -> Task:
    return Task.model_validate(
        {
            "name": "reviews",
            "template": "chat",
            "messages": MESSAGES,
            "answer_cue": "Sentiment:",
            "labels": ["negative", "positive"],
        }
        | changes
    )


def conversation(tokenizer: PreTrainedTokenizerBase, task: Task, max_tokens: int = 300):
    """The tokens of a task's inputs."""
    found = chat_format(task.messages, task.prompt_format, tokenizer, "tiny")
    return PromptTokenizer(tokenizer, found, max_tokens)


def by_the_tokenizer(
    tokenizer: PreTrainedTokenizerBase, task: Task, fields: dict[str, str]
) -> list[int]:
    """The same by the tokenizer's own chat template and the cue, in one text."""
    turns = [
        {"role": turn.role, "content": turn.content.format(**fields)} for turn in task.messages
    ]
    asked = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    found: list[int] = tokenizer(
        asked + (task.answer_cue or ""), add_special_tokens=False
    ).input_ids
    return found
