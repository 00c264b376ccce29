"""From an input to token ids: template, answer cue, label tokens, truncation.

The answer cue is tokenised on its own and appended, so the boundary between the prompt, which the
frozen base alone reads, and the cue, which the adapter acts on, is exact for every input.

An encoder has no cue. It reads the rendered template between its own special tokens, and its labels
are the rows of a head.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from keyword import iskeyword
from typing import Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from transformers import PreTrainedTokenizerBase

from dalorra.errors import AdapterError, InputError
from dalorra.labels import Labels, LabelsBy, LabelTrie, TokenIds, end_apart
from dalorra.templates import fields_of, filled
from dalorra.text_tokens import Part, TextTokens

InputFields = str | Mapping[str, str]
Overflow = Literal["truncate", "reject"]
Scope = Literal["answer_tokens", "all_tokens"]
"""The rows that an adapter acts on: the cue's, or every one."""

_NAME_LENGTH = 64  # characters of an argument's name that every tool layer takes


class PromptFormat(BaseModel):
    r"""How an input becomes a prompt, and which words answer it.

    Attributes:
        template: text with named fields, e.g. `"Review: {sentence}"`; each is also an argument
            of the tool that asks the adapter.
        answer_cue: constant tail after the template, e.g. `"\nSentiment:"`; None for an encoder.
        labels: label name → the text that stands for it after the cue, e.g. `" positive"`. An
            encoder has a class for each label instead, and does not look at the text; nor does a
            class head.
        labels_by: whether each label is a single token, a path in a `LabelTrie`, or a class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    template: str
    answer_cue: str | None = Field(default=None, min_length=1)
    labels: dict[str, str] = Field(min_length=2)
    labels_by: LabelsBy = Field(default="auto", exclude_if=lambda value: value == "auto")

    @field_validator("template")
    @classmethod
    def _has_named_fields(cls, template: str) -> str:
        names = fields_of(template)
        if not names or not all(names):
            raise ValueError(f"template {template!r} needs named fields such as {{text}}")
        for name in names:
            _check_name(name)
        return template

    @property
    def by_head(self) -> bool:
        """Whether the labels are classes of a head that the adapter brings."""
        return self.answer_cue is None or self.labels_by == "head"

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Field names in order of first appearance."""
        return fields_of(self.template)

    def render(self, values: Mapping[str, str]) -> str:
        """The template with its fields filled in; braces inside values stay as they are."""
        return "".join(part.text for part in self.parts(values))

    def parts(self, values: Mapping[str, str]) -> list[Part]:
        """The same in parts."""
        return filled(self.template, values)

    def as_fields(self, value: InputFields) -> dict[str, str]:
        """Checks an input against the template's fields.

        Raises:
            InputError: wrong type, missing or unknown field, or nothing but white space.
        """
        if isinstance(value, str):
            if len(self.fields) != 1:
                raise InputError(
                    f"input is a string, but the template has {len(self.fields)} fields: "
                    f"send an object with {', '.join(self.fields)}"
                )
            value = {self.fields[0]: value}
        for name in self.fields:
            if name not in value:
                raise InputError(f"input lacks the field {name!r}: send {', '.join(self.fields)}")
            if not isinstance(value[name], str):
                raise InputError(f"input field {name!r} must be a string: send text")
        if unknown := sorted(set(value) - set(self.fields)):
            raise InputError(
                f"input has the unknown field {unknown[0]!r}: send {', '.join(self.fields)}"
            )
        if not any(value[name].strip() for name in self.fields):
            raise InputError("input is empty: send some text")
        return {name: value[name] for name in self.fields}


def _check_name(name: str) -> None:
    """Refuses what cannot be an argument of a tool: LangChain's, MCP's, or of a function schema."""
    if _is_argument(name):
        return
    words = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_") or "text"
    better = words if _is_argument(words) else f"text_{words}"[:_NAME_LENGTH]
    raise ValueError(
        f"template field {{{name}}} has a name that tools cannot take as an argument: write "
        f"{{{better}}} (letters, digits and _), and where the data call it otherwise, "
        f"`columns: {{{better}: {name}}}`"
    )


def _is_argument(name: str) -> bool:
    """Whether a Python function, a JSON schema and a pydantic model can have a field so called."""
    return (
        re.fullmatch(rf"[A-Za-z][A-Za-z0-9_]{{0,{_NAME_LENGTH - 1}}}", name) is not None
        and name != "self"
        and not iskeyword(name)
        and not name.startswith(("model_dump", "model_validate"))
        and not (name.startswith("model_") and hasattr(BaseModel, name))
    )


@dataclass(frozen=True, slots=True)
class Prompt:
    """One tokenised input.

    Attributes:
        prompt_ids: T − k token ids before the cue, beginning-of-sequence token included.
        cue_ids: the k token ids of the answer cue; for an encoder, the token that ends a text.
        truncated: whether free text was cut to fit.
        trie: of labels of several tokens, or of those that come with the prompt.
        shared: the first tokens of a prompt that other questions about the same state begin with,
            too.
        options: names of the labels where these come with the prompt; the trie has a path for
            each, in this order, be it of one token or of several.
        question: digest of what is asked, see `dalorra.questions.Question`; empty where the input
            is no question.
    """

    prompt_ids: tuple[int, ...]
    cue_ids: tuple[int, ...]
    truncated: bool = False
    trie: LabelTrie | None = None
    shared: int = 0
    options: tuple[str, ...] | None = None
    question: str = ""

    @property
    def tokens(self) -> int:
        """T, prompt and cue."""
        return len(self.prompt_ids) + len(self.cue_ids)

    @property
    def state_ids(self) -> TokenIds:
        """The shared ones."""
        return self.prompt_ids[: self.shared]

    @property
    def tail_rows(self) -> int:
        """t, rows behind the prompt: the cue's and the trie's."""
        return len(self.cue_ids) + (len(self.trie.nodes) if self.trie else 0)


class PromptTokenizer:
    """Tokenises inputs of one `PromptFormat`; stateless after construction, so thread-safe.

    Args:
        tokenizer: a fast tokenizer of the base model.
        prompt_format: template, cue and labels; without a cue the prompts are an encoder's.
        max_tokens: limit on T, cue included.
        on_overflow: `truncate` cuts the longest field, never the template or the cue; `reject`
            raises `InputError`.

    Attributes:
        cue_ids: see `Prompt`.
        label_paths: token ids of each label after the cue; an encoder's hold the class.
        trie: of these, where one is longer than a token or the format says so.

    Raises:
        AdapterError: a label without a token of its own after the cue, two labels of the same
            tokens, labels that are not what `labels_by` says, or a cue that leaves no room for a
            prompt.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt_format: PromptFormat,
        max_tokens: int = 300,
        on_overflow: Overflow = "truncate",
    ) -> None:
        self._tokens = TextTokens(tokenizer)
        self.format = prompt_format
        self.max_tokens = max_tokens
        self.on_overflow = on_overflow
        self.label_paths: tuple[TokenIds, ...]
        self.trie: LabelTrie | None = None
        cue = prompt_format.answer_cue
        if cue is None:
            self._prefix, self.cue_ids = self._frame(tokenizer)
        else:
            self._prefix = self._tokens.start
            self.cue_ids = self._tokens(cue)
        if cue is None or prompt_format.by_head:
            self.label_paths = tuple((i,) for i in range(len(prompt_format.labels)))
        else:
            self.label_paths = self._paths(cue)
            single = all(len(path) == 1 for path in self.label_paths)
            if prompt_format.labels_by == "trie" or not single:
                self.trie = LabelTrie(self.label_paths)
        shell = prompt_format.render(dict.fromkeys(prompt_format.fields, ""))
        self.shell_tokens = len(self._prefix) + len(self._tokens(shell)) + len(self.cue_ids)
        if self.shell_tokens >= max_tokens:
            raise AdapterError(
                f"template and cue alone take {self.shell_tokens} tokens: raise max_tokens "
                f"({max_tokens}) or shorten them"
            )

    @property
    def label_ids(self) -> TokenIds:
        """The token of each label, or its class of a head.

        Raises:
            AdapterError: the labels are paths in a trie.
        """
        if self.trie is not None:
            raise AdapterError("this needs labels of one token each, and these are read by a trie")
        return tuple(path[0] for path in self.label_paths)

    def labels_on(self, device: torch.device) -> Labels:
        """Where the labels are read off; token ids are on `device`."""
        return self.trie or torch.tensor(self.label_ids, device=device)

    def encode(self, value: InputFields) -> Prompt:
        """Tokenises one input.

        Raises:
            InputError: it does not fit the template, or is over-long and `on_overflow="reject"`.
        """
        fields = self.format.as_fields(value)
        ids = self._prompt_ids(fields)
        room = self.max_tokens - len(self._prefix) - len(self.cue_ids)
        truncated = len(ids) > room
        if truncated and self.on_overflow == "reject":
            raise InputError(
                f"input takes {len(ids) + self.max_tokens - room} tokens, the limit is "
                f"{self.max_tokens}: shorten it"
            )
        while len(ids) > room:
            fields = self._cut(fields, excess=len(ids) - room)
            ids = self._prompt_ids(fields)
        return Prompt((*self._prefix, *ids), self.cue_ids, truncated, self.trie)

    def _cut(self, fields: dict[str, str], excess: int) -> dict[str, str]:
        """Drops at least one character and about `excess` tokens from the end of the longest."""
        encodings = {name: self._tokens.encoding(text) for name, text in fields.items()}
        name, encoding = max(encodings.items(), key=lambda item: len(item[1].ids))
        keep = max(len(encoding.ids) - excess, 0)
        end = min(encoding.offsets[keep - 1][1] if keep else 0, len(fields[name]) - 1)
        return {**fields, name: fields[name][:end]}

    def _prompt_ids(self, fields: dict[str, str]) -> TokenIds:
        """The rendered template, in which only the template's own text makes control tokens."""
        return self._tokens.of(self.format.parts(fields))

    def _frame(self, tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The special tokens in front of every text and behind it."""
        text = "a"
        whole, inner = tuple(cast(list[int], tokenizer(text).input_ids)), self._tokens(text)
        starts = range(len(whole) - len(inner) + 1)
        start = next((i for i in starts if whole[i : i + len(inner)] == inner), None)
        if start is None:
            raise AdapterError("the tokenizer changes a text that it puts special tokens around")
        return whole[:start], whole[start + len(inner) :]

    def _paths(self, cue: str) -> tuple[TokenIds, ...]:
        """Token ids of every label after the cue, none of which begins another."""
        texts = self.format.labels
        paths = {name: self._path(name, text, cue) for name, text in texts.items()}
        named = {path: name for name, path in paths.items()}
        for name, path in paths.items():
            if (other := named[path]) != name:
                raise AdapterError(
                    f"labels {name!r} and {other!r} are the same tokens after the cue: choose "
                    "different texts"
                )
        found = end_apart(tuple(paths.values()), self._tokens.end)
        if found is None:
            raise AdapterError(
                "the tokens of one label begin another's, and the tokenizer has no end-of-text "
                "token to tell them apart: choose other texts"
            )
        return found

    def _path(self, name: str, text: str, cue: str) -> TokenIds:
        k, ids = len(self.cue_ids), self._tokens(cue + text)
        if len(ids) <= k or ids[:k] != self.cue_ids:
            raise AdapterError(
                f"label {name!r} ({text!r}) has no tokens of its own after the cue {cue!r}: begin "
                "it with a space"
            )
        if self.format.labels_by == "tokens" and len(ids) > k + 1:
            raise AdapterError(
                f"label {name!r} ({text!r}) is not exactly one token after the cue {cue!r}: choose "
                "a text that is, or say `labels_by: trie`"
            )
        return ids[k:]
