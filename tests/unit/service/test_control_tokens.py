"""Control tokens in what a client writes are text, by every door and for every kind of adapter.

`tests/unit/dalorra/test_text_tokens.py` has the kinds of tokenizers.
"""

import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from dalorra.client.tool import ASK_NAME, TOOL_NAME
from dalorra.prompts import Prompt, PromptTokenizer
from dalorra.question_prompts import QuestionFormat, QuestionTokenizer
from tests import tiny, tiny_encoder
from tests.chat import chat_task, conversation
from tests.fakes import FakePredictor, FakeQuestions
from tests.questions import ASK_POSITIVE, POSITIVE
from tests.serving import RunningServer, over_mcp, serving

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROOM = 2_000


def llama_tokenizer() -> PreTrainedTokenizerBase:
    """One that begins every text, and has markup for chats."""
    tokenizer = tiny.tiny_tokenizer(bos=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def of_labels(**changes: Any) -> PromptTokenizer:
    return PromptTokenizer(llama_tokenizer(), tiny.FORMAT.model_copy(update=changes), ROOM)


def of_questions(**changes: Any) -> QuestionTokenizer:
    return QuestionTokenizer(llama_tokenizer(), QuestionFormat(**changes), ROOM)


def chat() -> PromptTokenizer:
    task = chat_task(messages=[{"role": "user", "content": "Review: {sentence}"}])
    return conversation(llama_tokenizer(), task, ROOM)


def encoder() -> PromptTokenizer:
    return PromptTokenizer(tiny_encoder.tiny_tokenizer(), tiny_encoder.FORMAT, ROOM)


LABELLED: dict[str, Callable[[], PromptTokenizer]] = {
    "labels of one token": of_labels,
    "labels in a trie": lambda: of_labels(labels={"a": " not at all good", "b": " not bad"}),
    "a class head": lambda: of_labels(labels_by="head"),
    "a chat": chat,
    "an encoder": encoder,
}
ASKED: dict[str, Callable[[], QuestionTokenizer]] = {
    "words": of_questions,
    "letters": lambda: of_questions(readout="letters"),
}


class _Tokenizing:
    """Mixed into a fake: it answers the prompts of a real tokenizer, and keeps them."""

    def __init__(self, tokenizer: PromptTokenizer | QuestionTokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self.prompts: list[Prompt] = []

    def encode(self, value: Any) -> Prompt:
        self.prompts.append(prompt := self._tokenizer.encode(value))
        return prompt


class Labelled(_Tokenizing, FakePredictor):
    """An adapter with labels, which answers a registered question, too."""

    registered = (POSITIVE,)


class Questions(_Tokenizing, FakeQuestions):
    """One that answers typed questions."""


async def post(server: RunningServer, path: str, body: dict[str, Any]) -> None:
    response = await server.client.post(path, json=body)
    assert response.status_code == 200, response.text


async def call(server: RunningServer, tool: str, given: dict[str, Any]) -> None:
    async with over_mcp(server) as client:
        result = await client.call_tool(tool, given)
    assert not result.is_error, result.content


def tensor(text: str) -> dict[str, Any]:
    return {"name": "sentence", "datatype": "BYTES", "shape": [1], "data": [text]}


def questions(text: str) -> dict[str, Any]:
    """A state and questions that say the text wherever they may say any."""
    return {
        "state": {"said": text},
        "questions": {
            "noul": {"type": "noul", "instructions": text},
            "choice": {"type": "choice", "instructions": [text], "criteria": {text: text, "b": ""}},
            "score": {"type": "score", "instructions": text, "criteria": [text, f"not {text}"]},
        },
    }


def decisions(text: str) -> dict[str, Any]:
    """The same in the other protocol, with a conversation and a tool's output."""
    return {
        "model": "gpt-6-luna",
        "input": [
            {"role": "system", "content": text},
            {"role": "user", "content": [{"type": "input_json", "data": {"said": text}}]},
            {"type": "function_call", "call_id": "1", "name": text, "arguments": text},
            {"type": "function_call_output", "call_id": "1", "output": text},
        ],
        "questions": [
            {
                "type": "choice",
                "instructions": text,
                "choices": [{"value": text, "description": text}, {"value": "b"}],
            }
        ],
    }


Door = Callable[[RunningServer, str], Awaitable[None]]
OF_LABELS: dict[str, Door] = {
    "predict": lambda server, text: post(server, "/predict", {"input": text}),
    "batch": lambda server, text: post(server, "/predict/batch", {"inputs": ["a", text]}),
    "infer": lambda server, text: post(
        server, "/v2/models/fake-adapter/infer", {"inputs": [tensor(text)]}
    ),
    "systemone": lambda server, text: post(
        server, "/v1/systemone", {"state": text, "questions": {"q": ASK_POSITIVE}}
    ),
    "tool": lambda server, text: call(server, TOOL_NAME, {"sentence": text}),
}
OF_QUESTIONS: dict[str, Door] = {
    "systemone": lambda server, text: post(server, "/v1/systemone", questions(text)),
    "decisions": lambda server, text: post(server, "/v1/decisions", decisions(text)),
    "tool": lambda server, text: call(server, ASK_NAME, questions(text)),
}


@pytest.mark.parametrize("door", OF_LABELS)
@pytest.mark.parametrize("kind", LABELLED)
async def test_of_an_input(kind: str, door: str):
    tokenizer = encoder_or_llama(kind)
    await check(Labelled(LABELLED[kind]()), OF_LABELS[door], tokenizer)


@pytest.mark.parametrize("door", OF_QUESTIONS)
@pytest.mark.parametrize("readout", ASKED)
async def test_of_a_question(readout: str, door: str):
    await check(Questions(ASKED[readout]()), OF_QUESTIONS[door], llama_tokenizer())


async def check(predictor: Any, door: Door, tokenizer: PreTrainedTokenizerBase) -> None:
    """That the prompts hold the control tokens that they hold without any in the text."""
    async with serving(predictor) as server:
        await door(server, "a good film")
        harmless = list(predictor.prompts)
        predictor.prompts.clear()
        await door(server, "good ".join(["a ", *tokenizer.all_special_tokens, " film"]))
    assert len(predictor.prompts) == len(harmless) > 0
    for prompt, other in zip(predictor.prompts, harmless, strict=True):
        assert controls(prompt, tokenizer) == controls(other, tokenizer)
    assert sum(p.tokens for p in predictor.prompts) > sum(p.tokens for p in harmless)


def controls(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Control tokens of a prompt, its cue and its labels, in their order."""
    paths = prompt.trie.paths if prompt.trie else ()
    control = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    ids = itertools.chain(prompt.prompt_ids, prompt.cue_ids, *paths)
    return [id_ for id_ in ids if id_ in control]


def encoder_or_llama(kind: str) -> PreTrainedTokenizerBase:
    return tiny_encoder.tiny_tokenizer() if kind == "an encoder" else llama_tokenizer()
