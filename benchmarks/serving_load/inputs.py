"""Inputs of the load: sentences of a task, and texts of an exact length in tokens."""

from collections.abc import Sequence
from itertools import cycle, islice

from benchmarks.serving_load.client import numbered
from dalorra.errors import ConfigError
from dalorra.prompts import PromptTokenizer

FILLER = "a"
"""One token after a space, in most vocabularies."""


def texts_of_length(
    tokenizer: PromptTokenizer, sentences: Sequence[str], tokens: int, texts: int
) -> list[str]:
    """Bodies whose prompts, with their number in front, have `tokens` tokens, cue included.

    Args:
        tokenizer: tokeniser of the adapter.
        sentences: what the bodies are made of; each begins with another of them.
        tokens: T.
        texts: how many.

    Raises:
        ConfigError: the adapter takes no prompts of that length.
    """
    if tokens > tokenizer.max_tokens:
        raise ConfigError(
            f"the adapter takes {tokenizer.max_tokens} tokens at most, {tokens} were asked for"
        )
    return [_text_of_length(tokenizer, sentences, tokens, start) for start in range(texts)]


def _text_of_length(
    tokenizer: PromptTokenizer, sentences: Sequence[str], tokens: int, start: int
) -> str:
    def length(words: Sequence[str]) -> int:
        prompt = tokenizer.encode(numbered(" ".join(words), 0))
        return prompt.tokens + (1 if prompt.truncated else 0)

    words: list[str] = []
    for sentence in islice(cycle(sentences), start % len(sentences), None):
        more = sentence.split()
        if length(words + more) > tokens:
            break
        words += more
    while length(words) < tokens:
        words.append(FILLER)
    return " ".join(words)
