"""`dalorra.json`: everything beside the weights that decides an adapter's answer."""

import json
import platform
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from dalorra.base.families import BaseKind
from dalorra.base.model import BaseModel as LoadedBase
from dalorra.base.quantized import Bits
from dalorra.errors import AdapterError, first_fault
from dalorra.labels import TokenIds
from dalorra.posteriors import Posterior, find_posterior
from dalorra.posteriors.bank import BankSpec
from dalorra.prompts import PromptFormat, PromptTokenizer, Scope
from dalorra.question_prompts import AnyTokenizer, QuestionFormat, QuestionTokenizer

FORMAT_VERSION: Final = 1
MANIFEST_FILE: Final = "dalorra.json"


_LABELS, _QUESTIONS = PromptFormat.__name__, QuestionFormat.__name__  # in no place of an error


def _kind_of_prompt(value: Any) -> str:
    """Whether a prompt asks for its own labels, or for the options of questions."""
    if isinstance(value, dict):
        return _QUESTIONS if "question" in value else _LABELS
    return _QUESTIONS if isinstance(value, QuestionFormat) else _LABELS


AnyPrompt = Annotated[
    Annotated[PromptFormat, Tag(_LABELS)] | Annotated[QuestionFormat, Tag(_QUESTIONS)],
    Discriminator(_kind_of_prompt),
]
"""How inputs become prompts: of an adapter with labels of its own, or of one for questions."""


class BaseReference(BaseModel):
    """The base model an adapter was trained on, and of what kind it is.

    Attributes:
        quantized: how its linear modules were stored then, and are unless another way is asked
            for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    digest: str
    kind: BaseKind = "llama"
    quantized: Bits | None = Field(default=None, exclude_if=lambda value: value is None)

    @classmethod
    def to(cls, base: LoadedBase) -> Self:
        """The reference to a base model as it is loaded."""
        return cls(name=base.name, digest=base.digest, kind=base.kind, quantized=base.bits)


class Manifest(BaseModel):
    """`dalorra.json`.

    Attributes:
        method: how the adapter is stochastic, one of `dalorra.posteriors.POSTERIORS`.
        posterior: fields of that posterior: what inference needs beside the tensors.
        method_parameters: e.g. prior p₀ and temperature τ; for the reader, not for inference.
        scope: rows that the adapter acts on.
        last_layers: K when only the last K layers (and the head) are adapted, else None.
        prompt: template and labels; or, of an adapter that answers questions, their format.
        cue_tokens: token ids of the answer cue, compared with the tokenizer's at load; on an
            encoder, what ends a text.
        label_tokens: label name → token id, compared likewise, or token ids where labels are read
            by a trie; of a head, the class; for questions, of each of the format's words.
        modules: adapted modules in the order of the bank's masks.
        max_tokens: limit on T that it was trained with.
        training: data digest, configuration and metrics, for the reader.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    name: str
    method: str
    posterior: dict[str, int | float | str] = Field(default_factory=dict)
    method_parameters: dict[str, Any]
    scope: Scope
    last_layers: int | None = None
    base_model: BaseReference
    prompt: AnyPrompt
    cue_tokens: list[int]
    label_tokens: dict[str, int | list[int]]
    modules: list[str]
    max_tokens: int
    bank: BankSpec
    training: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)

    @property
    def labelled(self) -> PromptFormat:
        """The prompt of an adapter with labels of its own.

        Raises:
            AdapterError: its labels come with each question.
        """
        if isinstance(self.prompt, QuestionFormat):
            raise AdapterError(
                f"{self.name} answers questions whose options come with them: this needs an "
                "adapter with labels of its own"
            )
        return self.prompt


@dataclass(frozen=True, slots=True)
class Card:
    """Who answers.

    Attributes:
        model: name of the base model.
        adapter: what the adapter is called, which a server may have renamed.
        digest: of the adapter.
        method: that trained it.
    """

    model: str
    adapter: str
    digest: str
    method: str


def library_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in ("dalorra-service", "torch", "transformers", "peft", "safetensors", "numpy"):
        with suppress(PackageNotFoundError):  # run from a source tree that is not installed
            found[name] = version(name)
    return found


def read_manifest(path: Path) -> Manifest:
    """Reads and verifies a file.

    Raises:
        AdapterError: it is no manifest of this format; the message names what is wrong.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdapterError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        raise AdapterError(f"{path} is not format version {FORMAT_VERSION}: use a newer release")
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        fault = first_fault(error, unnamed=(_LABELS, _QUESTIONS))
        raise AdapterError(f"{path}: {fault}") from error
    encoder = manifest.base_model.kind == "encoder"
    if encoder and manifest.scope != "all_tokens":
        raise AdapterError(f"{path}: scope: an adapter on an encoder acts on all_tokens")
    if encoder != (manifest.prompt.answer_cue is None):
        raise AdapterError(
            f"{path}: prompt.answer_cue: an adapter on an encoder has none, any other has one"
        )
    return manifest


def posterior_of(manifest: Manifest, path: Path) -> Posterior:
    """The posterior that the manifest read from `path` names.

    Raises:
        AdapterError: there is none of that name, or its parameters are impossible.
    """
    try:
        return find_posterior(manifest.method, manifest.posterior)
    except AdapterError as error:
        raise AdapterError(f"{path}: {error}") from error


def _paths(tokenizer: AnyTokenizer) -> dict[str, TokenIds]:
    """Tokens of what stands behind the cue, by its name."""
    if isinstance(tokenizer, QuestionTokenizer):
        return tokenizer.word_paths
    return dict(zip(tokenizer.format.labels, tokenizer.label_paths, strict=True))


def label_tokens(tokenizer: AnyTokenizer) -> dict[str, int | list[int]]:
    """`Manifest.label_tokens` of this tokenizer."""
    by_trie = isinstance(tokenizer, PromptTokenizer) and tokenizer.trie is not None
    return {
        name: list(path) if by_trie or len(path) > 1 else path[0]
        for name, path in _paths(tokenizer).items()
    }


def check_tokens(manifest: Manifest, tokenizer: AnyTokenizer) -> None:
    """Compares the tokenizer's cue and label tokens with those the adapter was trained on.

    Raises:
        AdapterError: they drifted; its message names the first that did.
    """
    if list(tokenizer.cue_ids) != manifest.cue_tokens:
        raise AdapterError(
            f"the answer cue is {list(tokenizer.cue_ids)} in this tokenizer, but the adapter was "
            f"trained with {manifest.cue_tokens}: use the tokenizer of {manifest.base_model.name}"
        )
    for label, path in _paths(tokenizer).items():
        found = path[0] if len(path) == 1 else list(path)
        expected = manifest.label_tokens.get(label)
        if expected not in (found, [found]):
            raise AdapterError(
                f"label {label!r} is token {found} in this tokenizer, but the adapter was trained "
                f"with {expected}: use the tokenizer of {manifest.base_model.name}"
            )
