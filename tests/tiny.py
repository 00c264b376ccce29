"""A Llama-family base model and adapters on it, small enough for unit tests.

The weights are random and large enough that a wrong row, mask or position changes every answer.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dalorra import posteriors
from dalorra.adapter.directory import Adapter, attached, read_adapter, save_adapter
from dalorra.adapter.layer import (
    HEAD,
    StochasticPeftModel,
    attach,
    class_head,
    lora_config,
    low_rank_updates,
    mask_logits,
    stochastic_layers,
)
from dalorra.adapter.manifest import BaseReference, Card, Manifest, label_tokens, library_versions
from dalorra.base.families import head_modules, set_head
from dalorra.base.model import BaseModel, load_base_model, weight_digest
from dalorra.decision.policy import Policy
from dalorra.decision.predictive import Prediction
from dalorra.forward.llama.base import ArrangedLlama
from dalorra.forward.llama.network import PackedLlama
from dalorra.forward.llama.prefix_cache import PrefixCache
from dalorra.forward.llama.questions import QuestionLlama
from dalorra.labels import Labels
from dalorra.posteriors import Posterior
from dalorra.posteriors.bank import BankSpec, MaskBank, NoiseBank
from dalorra.predictor import Predictor
from dalorra.prompts import Prompt, PromptFormat, PromptTokenizer, Scope
from dalorra.question_prompts import QuestionFormat, tokenizer_for

MODULES = ("q_proj", "v_proj", "lm_head")
EVERY_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EXAMPLES: dict[str, tuple[str, Posterior]] = {
    "dalorra": ("dalorra", posteriors.RankMasks()),
    "amortised": ("amortised", posteriors.AmortisedMasks()),
    "correlated": ("correlated", posteriors.CorrelatedMasks()),
    "spike_slab": ("spike_slab", posteriors.SpikeSlab()),
    "mle": ("mle", posteriors.Deterministic()),
    "map": ("map", posteriors.Deterministic()),
    "input dropout": ("mc_dropout", posteriors.AdapterDropout(rate=0.3)),
    "rank dropout": ("mc_dropout", posteriors.AdapterDropout(rate=0.3, position="rank")),
    "ensemble": ("ensemble", posteriors.Ensemble(members=2)),
    "random_mask": ("random_mask", posteriors.RandomMasks(off=1)),
    "blob": ("blob", posteriors.GaussianDown()),
    "tfb": ("tfb", posteriors.ColumnSpaceNoise(scale=0.3)),
    "c_lora": ("c_lora", posteriors.ContextualMatrix(hidden=5)),
}
"""Method and posterior of everything that a bank can be drawn of."""

_DEVIATIONS = {"down": 0.2, "up": 0.3, "mask_logits": 1.5, "log_deviation": 1.0}
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


SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.25,
    "attn_implementation": "sdpa",
}
"""Of tiny language models; 4 query heads share 2 key heads."""


def tiny_llama(*, tied: bool = False, layers: int = 2, seed: int = 0) -> LlamaForCausalLM:
    """Random float32 weights, frozen."""
    config = LlamaConfig(**SHAPE, num_hidden_layers=layers, head_dim=8, tie_word_embeddings=tied)
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
    posterior: Posterior | None = None,
    *,
    rank: int = 4,
    last_layers: int | None = None,
    modules: Sequence[str] = MODULES,
    classes: int = 0,
    seed: int = 1,
) -> StochasticPeftModel:
    """An adapter on `base` as after training: no tensor of it is zero; rank masks by default.

    With `classes` it has a head of so many, in place of what is adapted of the output projection.
    """
    layers = base.model.config.num_hidden_layers
    last = None if last_layers is None else range(layers - last_layers, layers)
    if classes:
        set_head(base.model, classes)
        modules = [name for name in modules if name != HEAD]
    head = head_modules(base.model) if classes else ()
    config = lora_config(rank, 3.0 * rank, modules, base.name, last, head)
    model: StochasticPeftModel = attach(base.model, config, posterior or posteriors.RankMasks())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in stochastic_layers(model).values():
            for name, tensor in layer.tensors.items():
                drawn = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(_DEVIATIONS.get(name, 0.4) * drawn)
        if head := class_head(model):
            head.weight.copy_(torch.randn(head.weight.shape, generator=generator))
    return model.eval()


def tiny_bank(model: StochasticPeftModel, samples: int = 5) -> MaskBank:
    """Of an adapter with rank masks."""
    return MaskBank.draw(mask_logits(model).detach(), BankSpec(samples=samples))


def tiny_manifest(
    base: BaseModel,
    model: StochasticPeftModel,
    scope: Scope = "answer_tokens",
    *,
    method: str = "dalorra",
    posterior: Posterior | None = None,
    prompt: PromptFormat | QuestionFormat = FORMAT,
    last_layers: int | None = None,
    bank: BankSpec | None = None,
    max_tokens: int = 64,
) -> Manifest:
    """The manifest that belongs to `tiny_adapter(base, posterior)`."""
    tokenizer = tokenizer_for(prompt, base.tokenizer)
    return Manifest(
        name="tiny",
        method=method,
        posterior=posterior.model_dump() if posterior else {},
        method_parameters={"prior": 0.5, "temperature": 0.5},
        scope=scope,
        last_layers=last_layers,
        base_model=BaseReference(name=base.name, digest=base.digest, kind=base.kind),
        prompt=prompt,
        cue_tokens=list(tokenizer.cue_ids),
        label_tokens=label_tokens(tokenizer),
        modules=list(stochastic_layers(model)),
        max_tokens=max_tokens,
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
    prompt = options.get("prompt", FORMAT)
    classes = len(prompt.labels) if prompt.by_head else 0
    posterior = options.get("posterior")
    model = tiny_adapter(spare, posterior, last_layers=last_layers, classes=classes, **shape)
    manifest = tiny_manifest(spare, model, scope, last_layers=last_layers, **options)
    save_adapter(model, manifest, path, dtype)
    return path


def predictor_on(adapter: Adapter | Path, base: BaseModel, **options: Any) -> Predictor:
    """The predictor of an adapter on `base`; options of `Predictor.of`."""
    if isinstance(adapter, Path):
        adapter = read_adapter(adapter)
    with attached(adapter, base) as model:
        return Predictor.of(adapter, base, model, **options)


def predictor_before_saving(
    model: StochasticPeftModel, base: BaseModel, manifest: Manifest, **options: Any
) -> Predictor:
    """The predictor of an attached adapter, as it is now; options of `Predictor`."""
    return Predictor(
        model,
        PromptTokenizer(base.tokenizer, manifest.prompt, manifest.max_tokens),
        posteriors.find_posterior(manifest.method, manifest.posterior),
        manifest.bank,
        manifest.scope,
        card=Card(base.name, manifest.name, "", manifest.method),
        policy=Policy.never(),
        **options,
    )


def packed(
    model: StochasticPeftModel,
    labels: Labels,
    bank: NoiseBank,
    scope: Scope = "answer_tokens",
    prefix_cache: PrefixCache | None = None,
) -> PackedLlama:
    """The packed forward of an attached adapter, as it is now, on a base of its own."""
    base = ArrangedLlama(model.get_base_model(), prefix_cache)
    return PackedLlama(base, low_rank_updates(model), labels, bank, scope, class_head(model))


def packed_questions(
    model: StochasticPeftModel,
    bank: NoiseBank,
    scope: Scope = "answer_tokens",
    prefix_cache: PrefixCache | None = None,
) -> QuestionLlama:
    """The same of an adapter that answers questions."""
    base = ArrangedLlama(model.get_base_model(), prefix_cache)
    return QuestionLlama(base, low_rank_updates(model), bank, scope)


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


def random_prompts(lengths: Sequence[int], k: int) -> list[Prompt]:
    """Prompts of these lengths, with a cue of k tokens after each."""
    generator = torch.Generator().manual_seed(1)
    return [
        Prompt(tuple(torch.randint(0, 300, (n,), generator=generator).tolist()), tuple(range(k)))
        for n in lengths
    ]


def answer(probability: float, variance: float, novelty: float | None = None) -> Prediction:
    """One of these numbers; the others say nothing."""
    return Prediction("", probability, variance, {}, 0.0, 0.0, samples=1, novelty=novelty)
