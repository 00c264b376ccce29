"""Runs on other families than Llama, and as conversations."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dalorra.adapter.directory import load_adapter, read_adapter
from dalorra.base.model import load_base_model
from dalorra.errors import AdapterError, ConfigError
from dalorra.predictor import Predictor
from tests.tiny import predictor_on, save_tiny_adapter, tiny_tokenizer
from tests.tiny_encoder import tiny_encoder_folder
from tests.tiny_families import WINDOW, base_of, folder_of
from training.config import read_config
from training.run import Run, train

MARKUP = (
    "{% for turn in messages %}<s>{{ turn.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>:{% endif %}"
)
MESSAGES = [{"role": "user", "content": "Review: {sentence}"}]


@pytest.fixture
def as_chat(configure, files):
    """`configure` for a conversation with a model in a folder."""

    def write(folder: Path, **changes: Any) -> Path:
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = MARKUP
        tokenizer.save_pretrained(folder)
        task = yaml.safe_load((files / "task.yaml").read_text())
        task |= {"template": "chat", "messages": MESSAGES}
        return configure(base_model=str(folder), task=task, **changes)

    return write


@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
@pytest.mark.parametrize("family", ["Mistral", "Qwen2", "Qwen3"])
def test_a_conversation_with_another_family_is_trained_and_answers_as_evaluated(
    family, scope, as_chat, no_figures, answers_as_evaluated, tmp_path
):
    folder = folder_of(family, tmp_path / "base")
    path = as_chat(folder, adapter={"scope": scope})
    adapter = train(path, overrides={"optimizer.steps": "2"})
    prompt = read_adapter(adapter).manifest.prompt
    assert prompt.template == "<s>Review: {sentence}</s>"
    assert prompt.answer_cue == "<s>:\nSentiment:"
    answers_as_evaluated(Predictor.load(adapter, str(folder), device="cpu", dtype="float32"))


def test_more_than_a_sliding_window_is_refused_in_training_and_in_serving(configure, tmp_path):
    family, reason = "Mistral with a window", r"max_tokens: .* at most 256 tokens \(its sliding"
    folder = folder_of(family, tmp_path / "base")
    fits = configure(base_model=str(folder), adapter={"max_tokens": WINDOW})
    assert Run(read_config(fits)).tokenizer.max_tokens == WINDOW
    longer = configure(base_model=str(folder), adapter={"max_tokens": WINDOW + 1})
    with pytest.raises(ConfigError, match=reason):
        Run(read_config(longer))
    base = base_of(family)
    predictor_on(save_tiny_adapter(tmp_path / "fits", base, max_tokens=WINDOW), base)
    beyond = read_adapter(save_tiny_adapter(tmp_path / "beyond", base, max_tokens=WINDOW + 1))
    with pytest.raises(AdapterError, match=reason):
        load_adapter(beyond, base)


def test_nobody_chats_with_an_encoder(as_chat, tmp_path):
    folder = tiny_encoder_folder(tmp_path / "bert")
    path = as_chat(folder, adapter={"max_tokens": 32})
    with pytest.raises(ConfigError, match=r"task\.template: nobody chats with the encoder bert"):
        Run(read_config(path))


def test_a_base_without_a_chat_template_is_refused(as_chat, tmp_path):
    folder = folder_of("Qwen3", tmp_path / "base")
    path = as_chat(folder)
    (folder / "chat_template.jinja").unlink()
    assert load_base_model(str(folder), device="cpu").tokenizer.chat_template is None
    with pytest.raises(ConfigError, match="tokenizer of base has no chat template"):
        Run(read_config(path))
