"""A Llama-family base model and adapters on it, small enough for unit tests.

The weights are random and large enough that a wrong row, mask or position changes every answer.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dalorra.adapter.directory import save_adapter
from dalorra.adapter.layer import StochasticPeftModel, attach, lora_config, stochastic_layers
from dalorra.adapter.manifest import BaseReference, Manifest, library_versions
from dalorra.base.model import BaseModel, load_base_model, weight_digest
from dalorra.posteriors import RankMasks
from dalorra.posteriors.bank import BankSpec
from dalorra.prompts import Prompt, PromptFormat, PromptTokenizer, Scope

MODULES = ("q_proj", "v_proj", "lm_head")
WORDS = ("Review", "Sentiment", *(f"Ġ{word}" for word in ("positive", "negative", "neutral")))
FORMAT = PromptFormat(
    template="Review: {sentence}",
    answer_cue="\nSentiment:",
    labels={"negative": " negative", "positive": " positive"},
)
SENTENCES = (
    "good",
    "an odd little film, with no end",
    "I laughed :)",
    "So bad that it is fun again",
)


def tiny_tokenizer(*, bos: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE: `WORDS` and `::` are one token each, anything else a token per byte."""
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = [(word[:end], word[end]) for word in (*WORDS, "::") for end in range(1, len(word))]
    tokens += dict.fromkeys(left + right for left, right in merges)
    model = BPE({token: i for i, token in enumerate(tokens)}, list(dict.fromkeys(merges)))
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def tiny_llama(*, tied: bool = False, layers: int = 2, seed: int = 0) -> LlamaForCausalLM:
    """Random float32 weights, frozen; 4 query heads share 2 key heads."""
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        initializer_range=0.25,
        tie_word_embeddings=tied,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return model.eval().requires_grad_(False)


def tiny_base(**options: Any) -> BaseModel:
    """`tiny_llama(**options)` as `load_base_model` would return it."""
    model = tiny_llama(**options)
    return BaseModel(model, tiny_tokenizer(), "tiny-llama", weight_digest(model))


def tiny_base_model(folder: Path, **options: Any) -> Path:
    """Writes a folder that `load_base_model` reads, and returns it."""
    tiny_llama(**options).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_adapter(
    base: BaseModel,
    *,
    rank: int = 4,
    last_layers: int | None = None,
    modules: tuple[str, ...] = MODULES,
    seed: int = 1,
) -> StochasticPeftModel:
    """An adapter on `base` as after training: no tensor of it is zero, φ differs everywhere."""
    layers = base.model.config.num_hidden_layers
    last = None if last_layers is None else range(layers - last_layers, layers)
    model: StochasticPeftModel = attach(
        base.model, lora_config(rank, 3.0 * rank, modules, base.name, last), RankMasks()
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in stochastic_layers(model).values():
            for tensor, scale in ((layer.down, 0.2), (layer.up, 0.3), (layer.mask_logits, 1.5)):
                tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))
    return model.eval()


def tiny_manifest(
    base: BaseModel,
    model: StochasticPeftModel,
    scope: Scope = "answer_tokens",
    *,
    prompt: PromptFormat = FORMAT,
    last_layers: int | None = None,
    bank: BankSpec | None = None,
) -> Manifest:
    """The manifest that belongs to `tiny_adapter(base)`."""
    tokenizer = PromptTokenizer(base.tokenizer, prompt)
    return Manifest(
        name="tiny",
        method="dalorra",
        method_parameters={"prior": 0.5, "temperature": 0.5},
        scope=scope,
        last_layers=last_layers,
        base_model=BaseReference(name=base.name, digest=base.digest),
        prompt=prompt,
        cue_tokens=list(tokenizer.cue_ids),
        label_tokens=dict(zip(prompt.labels, tokenizer.label_ids, strict=True)),
        modules=list(stochastic_layers(model)),
        max_tokens=64,
        bank=bank or BankSpec(samples=5, seed=3),
        versions=library_versions(),
    )


def save_tiny_adapter(
    path: Path, base: BaseModel, scope: Scope = "answer_tokens", **options: Any
) -> Path:
    """Writes `tiny_adapter` on a copy of `base`, which stays as it was.

    Options of `tiny_adapter`, of `tiny_manifest` and of `save_adapter`.
    """
    spare = BaseModel(copy.deepcopy(base.model), base.tokenizer, base.name, base.digest)
    last_layers = options.pop("last_layers", None)
    dtype = options.pop("dtype", "float32")
    shape = {name: options.pop(name) for name in ("rank", "modules", "seed") if name in options}
    model = tiny_adapter(spare, last_layers=last_layers, **shape)
    manifest = tiny_manifest(spare, model, scope, last_layers=last_layers, **options)
    save_adapter(model, manifest, path, dtype)
    return path


def tiny_folders(folder: Path) -> tuple[Path, Path]:
    """A tiny adapter and its base model, both on disk."""
    base = tiny_base_model(folder / "base")
    return save_tiny_adapter(folder / "adapter", load_base_model(str(base), dtype="float32")), base


def tiny_prompts(
    base: BaseModel, sentences: tuple[str, ...] = SENTENCES, prompt: PromptFormat = FORMAT
) -> list[Prompt]:
    """Ragged prompts."""
    tokenizer = PromptTokenizer(base.tokenizer, prompt)
    return [tokenizer.encode(sentence) for sentence in sentences]
