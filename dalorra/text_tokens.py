"""Token ids of texts, in which only their author writes control tokens such as `<|im_end|>`.

What an input says is text, whatever it looks like: a control token that it holds is tokenised as
its letters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from dalorra.errors import AdapterError
from dalorra.labels import TokenIds

_Control = tuple[int, int, int]  # token id, and where it is spelt


@dataclass(frozen=True, slots=True)
class Part:
    """Of a text.

    Attributes:
        text: what it says.
        own: whether it may spell control tokens: the author of the template wrote it.
    """

    text: str
    own: bool = False


class TextTokens:
    """Tokenises texts without special tokens; stateless after construction, so thread-safe.

    Args:
        tokenizer: a fast tokenizer of the base model.

    Attributes:
        start: the beginning-of-sequence token, where this tokenizer puts one in front of a text.
        end: the end-of-text token, where it has one.

    Raises:
        AdapterError: it is not a fast one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise AdapterError("the base model needs a fast tokenizer (tokenizer.json)")
        # A copy without truncation and padding: encoding then has no state to race for.
        self._backend: Any = type(backend).from_str(backend.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        added = self._backend.get_added_tokens_decoder()
        # Runs of spaces may be added tokens, too, and control nothing.
        self._control = {
            id_: token.content for id_, token in added.items() if token.content.strip()
        }
        empty, bos = cast(list[int], tokenizer("").input_ids), tokenizer.bos_token_id
        self.start: TokenIds = (bos,) if bos is not None and empty[:1] == [bos] else ()
        self.end = cast(int | None, tokenizer.eos_token_id)

    def __call__(self, text: str) -> TokenIds:
        """Of a text whose control tokens are meant."""
        return tuple(self.encoding(text).ids)

    def encoding(self, text: str) -> Any:
        """The same with the offset of each token in the text."""
        return self._backend.encode(text, add_special_tokens=False)

    def of(self, parts: Sequence[Part]) -> TokenIds:
        """Of the parts' texts put together, where only own parts make control tokens."""
        text = "".join(part.text for part in parts)
        encoding = self.encoding(text)
        if self._control.keys().isdisjoint(encoding.ids):
            return tuple(encoding.ids)
        controls, literal = self._controls(text, encoding), _own_spans(parts)
        own = [c for c in controls if any(_within(text, c, span) for span in literal)]
        if own == controls:
            return tuple(encoding.ids)
        ids: list[int] = []
        at = 0
        for id_, start, end in own:
            ids += [*self._letters(text[at:start]), id_]
            at = end
        return (*ids, *self._letters(text[at:]))

    def _controls(self, text: str, encoding: Any) -> list[_Control]:
        """Control tokens that the text spells out, and where.

        The token of unknown words has an id of that kind, too, but its text is another.
        """
        return [
            (id_, start, end)
            for id_, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if id_ in self._control
            and text[start:end].strip().casefold() == self._control[id_].strip().casefold()
        ]

    def _letters(self, text: str) -> list[int]:
        """Tokens of what is text whatever it says: what would be a control token is cut in two."""
        encoding = self.encoding(text)
        controls = self._controls(text, encoding)
        cuts = [start + 1 for _, start, end in controls if end - start > 1]
        if not cuts:  # a control token of a single character has no halves and is left out
            return [id_ for id_ in encoding.ids if id_ not in {id_ for id_, _, _ in controls}]
        parts = (text[a:b] for a, b in pairwise((0, *cuts, len(text))))
        return [id_ for part in parts for id_ in self._letters(part)]


def _own_spans(parts: Sequence[Part]) -> list[tuple[int, int]]:
    """Where the own parts lie in the text."""
    spans, at = [], 0
    for part in parts:
        if part.own:
            spans.append((at, at + len(part.text)))
        at += len(part.text)
    return spans


def _within(text: str, control: _Control, span: tuple[int, int]) -> bool:
    """Whether a span of the text spells a control token, which may take white space beside it."""
    _, start, end = control
    spelt = text[start:end]
    first = start + len(spelt) - len(spelt.lstrip())
    return span[0] <= first and first + len(spelt.strip()) <= span[1]
