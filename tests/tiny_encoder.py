"""Encoders as base models and adapters on them, small enough for unit tests."""

import copy
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordPiece
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from dalorra.adapter.directory import save_adapter
from dalorra.adapter.layer import StochasticPeftModel, attach, lora_config
from dalorra.adapter.manifest import Manifest
from dalorra.base.families import head_modules, set_head
from dalorra.base.model import BaseModel, weight_digest
from dalorra.posteriors import Posterior, RankMasks
from dalorra.posteriors.bank import BankSpec
from dalorra.prompts import Prompt, PromptFormat, PromptTokenizer
from tests.tiny import tiny_manifest

KINDS = ("bert", "distilbert")
MODULES = {
    "bert": ("query", "key", "value", "dense"),
    "distilbert": ("q_lin", "k_lin", "v_lin", "lin1", "lin2"),
}
FORMAT = PromptFormat(
    template="{sentence}",
    labels={"negative": "", "neutral": "", "positive": ""},
)
TEXTS = ("good", "an odd film with no end", "bad bad", "so bad that it is fun again")
_WORDS = sorted({word for text in TEXTS for word in text.split()} | {"great", "dull", "I", "what"})
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece over `TEXTS` and single letters, between [CLS] and [SEP]."""
    letters = [mark + chr(code) for code in range(33, 127) for mark in ("", "##")]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys((*_SPECIAL, *_WORDS, *letters)))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), _SPECIAL, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{name}_token": token for name, token in names.items()}
    )


def tiny_encoder(kind: str = "bert", *, seed: int = 0) -> PreTrainedModel:
    """Random float32 weights, frozen, dropout as published."""
    shared = {
        "vocab_size": len(tiny_tokenizer()),
        "max_position_embeddings": 48,
        "initializer_range": 0.25,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel
        if kind == "bert":
            sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
            config = BertConfig(**shared, **sizes, intermediate_size=24)
            model = BertForSequenceClassification(config)
        else:
            small = DistilBertConfig(**shared, dim=16, n_layers=2, n_heads=2, hidden_dim=24)
            model = DistilBertForSequenceClassification(small)
    return model.eval().requires_grad_(False)


def tiny_encoder_base(kind: str = "bert", **options: Any) -> BaseModel:
    """`tiny_encoder(kind)` as `load_base_model` would return it."""
    model = tiny_encoder(kind, **options)
    return BaseModel(model, tiny_tokenizer(), f"tiny-{kind}", weight_digest(model.base_model))


def tiny_encoder_folder(folder: Path, kind: str = "bert") -> Path:
    """Writes a folder that `load_base_model` reads, without the head, and returns it."""
    model = tiny_encoder(kind)
    model.save_pretrained(
        folder,
        state_dict={
            name: tensor
            for name, tensor in model.state_dict().items()
            if not name.startswith(head_modules(model))
        },
    )
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_encoder_adapter(
    base: BaseModel, posterior: Posterior | None = None, *, rank: int = 3, seed: int = 1
) -> StochasticPeftModel:
    """An adapter on `base` as after training: no tensor of it is zero."""
    kind = base.model.config.model_type
    set_head(base.model, len(FORMAT.labels))
    config = lora_config(rank, 2.0 * rank, MODULES[kind], base.name, None, head_modules(base.model))
    model: StochasticPeftModel = attach(base.model, config, posterior or RankMasks())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(model.named_parameters()):
            if tensor.requires_grad:
                scale = 1.5 if "mask_logits" in name else 0.4
                tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))
    return model.eval()


def tiny_encoder_manifest(
    base: BaseModel, model: StochasticPeftModel, *, bank: BankSpec | None = None
) -> Manifest:
    """The manifest that belongs to `tiny_encoder_adapter(base)`."""
    return tiny_manifest(base, model, "all_tokens", prompt=FORMAT, bank=bank, max_tokens=32)


def save_tiny_encoder_adapter(
    path: Path, base: BaseModel, *, bank: BankSpec | None = None, seed: int = 1
) -> Path:
    """Writes `tiny_encoder_adapter` on a copy of `base`, which stays as it was."""
    spare = BaseModel(copy.deepcopy(base.model), base.tokenizer, base.name, base.digest)
    model = tiny_encoder_adapter(spare, seed=seed)
    save_adapter(model, tiny_encoder_manifest(spare, model, bank=bank), path, "float32")
    return path


def tiny_texts(base: BaseModel, texts: tuple[str, ...] = TEXTS) -> list[Prompt]:
    """Ragged texts."""
    tokenizer = PromptTokenizer(base.tokenizer, FORMAT)
    return [tokenizer.encode(text) for text in texts]
