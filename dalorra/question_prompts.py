"""From a question about a state to token ids: the state, the question, the cue, the options.

    [state | question | cue] and behind it the trie of the options' words or codes

State and question are tokenised apart, so that the boundary between them is exact: whatever else is
asked about a state begins with the same tokens. Options are listed in an order of their own, and a
label is read off by its words or by a code that depends on that order alone: an answer does not
depend on the order in which a question gives its options. The levels of a score have theirs.
"""

import itertools
from collections.abc import Sequence
from functools import lru_cache
from string import ascii_uppercase
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from transformers import PreTrainedTokenizerBase

from dalorra.errors import AdapterError, InputError, TooLongError
from dalorra.labels import LabelTrie, TokenIds, end_apart
from dalorra.prompts import Overflow, Prompt, PromptFormat, PromptTokenizer
from dalorra.questions import YES, Asked, Option, Question
from dalorra.templates import fields_of, filled
from dalorra.text_tokens import Part, TextTokens

Readout = Literal["texts", "letters"]
"""What stands for an option behind the cue: its words, or a code beside which it is listed."""

Listing = Literal["described", "always"]
"""When the prompt lists the options of a choice whose words are read off."""

YES_WORD, NO_WORD = "yes", "no"

_FIELDS: Final = {
    "state": ("state",),
    "question": ("instructions", "options"),
    "option": ("mark", "name"),
    "described_option": ("mark", "name", "description"),
}
_KEPT_STATES: Final = 16  # the questions about one come one after another
_KEPT_PATHS: Final = 4096


class QuestionFormat(BaseModel):
    r"""How a question about a state becomes a prompt, and how its options are read off.

    The levels of a score are always listed: what a level means depends on the others.

    Attributes:
        state: template with `{state}`.
        question: template with `{instructions}` and `{options}`, the lines of the options.
        option: template of a line with `{mark}`, which is `-` or a code such as `A.`, and `{name}`.
        described_option: the same with `{description}`, of an option that has one.
        answer_cue: constant tail, e.g. `"\nAnswer:"`.
        readout: `texts`: the options' words; `letters`: codes. Yes and no are words in both.
        listing: `described`: options are listed where one of them has a description.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: str = "{state}"
    question: str = "\n\nQuestion: {instructions}{options}"
    option: str = "\n{mark} {name}"
    described_option: str = "\n{mark} {name}: {description}"
    answer_cue: str = Field(default="\nAnswer:", min_length=1)
    readout: Readout = "texts"
    listing: Listing = "described"

    @field_validator(*_FIELDS)
    @classmethod
    def _has_its_fields(cls, template: str, info: ValidationInfo) -> str:
        wanted = _FIELDS[info.field_name or ""]
        if sorted(fields_of(template)) != sorted(wanted):
            fields = " and ".join(f"{{{name}}}" for name in wanted)
            raise ValueError(f"template {template!r} needs {fields}, and no other fields")
        return template

    @property
    def by_head(self) -> bool:
        """No: the options come with the question."""
        return False

    @property
    def words(self) -> tuple[str, ...]:
        """What stands behind the cue whatever is asked: yes and no, and the codes."""
        return (YES_WORD, NO_WORD, *(ascii_uppercase if self.readout == "letters" else ()))

    def lists(self, question: Question) -> bool:
        """Whether the prompt lists the options."""
        if question.kind == "score" or any(option.description for option in question.options):
            return True
        always = self.readout == "letters" or self.listing == "always"
        return question.kind == "choice" and always


class QuestionTokenizer:
    """Tokenises questions in one `QuestionFormat`; thread-safe.

    What is too long is refused: who asks should know what was read.

    Args:
        tokenizer: a fast tokenizer of the base model.
        question_format: templates, cue and readout.
        max_tokens: limit on the tokens of state, question, cue and options together.

    Attributes:
        cue_ids: see `Prompt`.
        word_paths: token ids of each of the format's `words` after the cue.

    Raises:
        AdapterError: templates and cue that leave no room.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        question_format: QuestionFormat,
        max_tokens: int = 300,
    ) -> None:
        self._tokens = TextTokens(tokenizer)
        self.format = question_format
        self.max_tokens = max_tokens
        self.cue_ids = self._tokens(question_format.answer_cue)
        self._state_ids = lru_cache(_KEPT_STATES)(self._ids_of_state)
        self._path = lru_cache(_KEPT_PATHS)(self._path_of)
        self.word_paths = {word: self._path(word) for word in question_format.words}
        shell = filled(question_format.question, {"instructions": "", "options": ""})
        used = len(self._state_ids("")) + len(self._tokens.of(shell)) + len(self.cue_ids)
        if used >= max_tokens:
            raise AdapterError(
                f"templates and cue alone take {used} tokens: raise max_tokens ({max_tokens}) or "
                "shorten them"
            )

    @property
    def label_ids(self) -> TokenIds:
        """None: see `PromptTokenizer.label_ids`.

        Raises:
            AdapterError: always.
        """
        raise AdapterError("this needs labels of one token each, and these come with the questions")

    def encode(self, value: Asked) -> Prompt:
        """Tokenises a question about a state.

        Raises:
            InputError: it is no such question, or two options cannot be told apart.
            TooLongError: it takes more tokens than the limit.
        """
        if not isinstance(value, Asked):
            raise InputError("this adapter answers questions: send a state and a question about it")
        question, state = value.question, self._state_ids(value.state)
        words = _words(question)
        codes = self._codes(question, words)
        trie = self._trie(question, words if codes is None else codes)
        asked = self._tokens.of(
            filled(
                self.format.question,
                {
                    "instructions": question.instructions.strip(),
                    "options": self._lines(question, words, codes),
                },
            )
        )
        prompt = Prompt(
            (*state, *asked),
            self.cue_ids,
            trie=trie,
            shared=len(state),
            options=tuple(option.name for option in question.options),
            question=question.digest,
        )
        if (rows := len(prompt.prompt_ids) + prompt.tail_rows) > self.max_tokens:
            raise TooLongError(
                f"state and question take {rows} tokens, {len(state)} of them the state, and the "
                f"limit is {self.max_tokens}: shorten them"
            )
        return prompt

    def _ids_of_state(self, state: str) -> TokenIds:
        """Tokens that all questions about a state begin with."""
        return (*self._tokens.start, *self._tokens.of(filled(self.format.state, {"state": state})))

    def _codes(self, question: Question, words: Sequence[str]) -> list[str] | None:
        """The options' codes, in their order; None where their words are read off."""
        if self.format.readout == "texts" or question.kind == "noul":
            return None
        code = dict(zip(_listed(question, words), _codes(len(words)), strict=True))
        return [code[at] for at in range(len(words))]

    def _lines(
        self, question: Question, words: Sequence[str], codes: Sequence[str] | None
    ) -> list[Part]:
        """The options' lines; none where they are not listed."""
        if not self.format.lists(question):
            return []
        return [
            part
            for at in _listed(question, words)
            for part in self._line(
                "-" if codes is None else f"{codes[at]}.", words[at], question.options[at]
            )
        ]

    def _line(self, mark: str, word: str, option: Option) -> list[Part]:
        description = option.description.strip()
        template = self.format.described_option if description else self.format.option
        return filled(template, {"mark": mark, "name": word, "description": description})

    def _trie(self, question: Question, texts: Sequence[str]) -> LabelTrie:
        """A path for each option, in the question's order.

        Raises:
            InputError: two have the same tokens, or one begins another without an end.
        """
        paths = [self._path(text) for text in texts]
        names = [option.name for option in question.options]
        first: dict[TokenIds, str] = {}
        for name, path in zip(names, paths, strict=True):
            if not path:
                raise InputError(f"option {name!r} has no tokens: give it another name")
            if (other := first.setdefault(path, name)) != name:
                raise InputError(_same(other, name))
        apart = end_apart(paths, self._tokens.end)
        if apart is None:
            raise InputError(
                "the name of one option begins another's, and the tokenizer of the base model has "
                "no end-of-text token to tell them apart: choose other names"
            )
        return LabelTrie(apart)

    def _path_of(self, text: str) -> TokenIds:
        """Token ids of a text after the cue and a space.

        As the model would write it; where that changes the cue's own tokens, tokenised apart.
        """
        k, own = len(self.cue_ids), Part(self.format.answer_cue, own=True)
        ids = self._tokens.of([own, Part(f" {text}")])
        return ids[k:] if ids[:k] == self.cue_ids else self._tokens.of([Part(f" {text}")])


AnyTokenizer = PromptTokenizer | QuestionTokenizer


def tokenizer_for(
    prompt: PromptFormat | QuestionFormat,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int = 300,
    on_overflow: Overflow = "truncate",
) -> AnyTokenizer:
    """The tokenizer of an adapter's inputs.

    Args:
        prompt: of the adapter.
        tokenizer: of the base model.
        max_tokens: see either.
        on_overflow: see `PromptTokenizer`; questions are refused.

    Raises:
        AdapterError: the prompt does not go with this tokenizer.
    """
    if isinstance(prompt, QuestionFormat):
        return QuestionTokenizer(tokenizer, prompt, max_tokens)
    return PromptTokenizer(tokenizer, prompt, max_tokens, on_overflow)


def _words(question: Question) -> list[str]:
    """What the model reads of each option's name.

    Raises:
        InputError: the same of two of them.
    """
    if question.kind == "noul":
        return [YES_WORD if option.name == YES else NO_WORD for option in question.options]
    words: dict[str, str] = {}
    for option in question.options:
        word = " ".join(option.name.split())
        if (other := words.setdefault(word, option.name)) != option.name:
            raise InputError(_same(other, option.name))
    return list(words)


def _same(one: str, other: str) -> str:
    return (
        f"options {one!r} and {other!r} are the same to the model: give them names that differ in "
        "more than white space"
    )


def _listed(question: Question, words: Sequence[str]) -> list[int]:
    """The options in the order of their lines, which that of the question does not change."""
    if question.kind == "score":
        return list(range(len(words)))
    return sorted(range(len(words)), key=lambda at: (words[at], question.options[at].description))


def _codes(options: int) -> list[str]:
    """A, B, C, …, and for more options than letters AA, AB, …"""
    if options <= len(ascii_uppercase):
        return list(ascii_uppercase[:options])
    pairs = map("".join, itertools.product(ascii_uppercase, repeat=2))
    return list(itertools.islice(pairs, options))
