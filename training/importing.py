"""Complete adapters of plain LoRAs that others have trained.

A plain LoRA does not say what it is asked: a task says that. It acts on every token; an activated
one acts from its invocation tokens on, which must be the task's answer cue. Several LoRAs in one
folder, such as `dalorra export --form bank` writes, become an ensemble.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dalorra.adapter.directory import WeightDtype, save_adapter
from dalorra.adapter.layer import (
    StochasticPeftModel,
    Updates,
    attach,
    detach,
    lora_config,
    module_tensors,
    stochastic_layers,
)
from dalorra.adapter.manifest import (
    BaseReference,
    Card,
    Manifest,
    label_tokens,
    library_versions,
)
from dalorra.adapter.plain_lora import PlainLora, read_plain_loras, side_by_side
from dalorra.base.families import too_long
from dalorra.base.model import BaseModel, load_base_model
from dalorra.base.quantized import Quantize
from dalorra.decision.policy import Policy
from dalorra.errors import AdapterError, ConfigError
from dalorra.forward.arranged import arrange
from dalorra.posteriors import Ensemble, Posterior
from dalorra.posteriors.bank import BankSpec
from dalorra.predictor import Predictor
from dalorra.prompts import PromptTokenizer, Scope
from training.asking import asked
from training.methods.mle import Mle
from training.methods.tfb import Tfb
from training.methods.trained import TrainedAdapter
from training.prompt_cache import PromptCache
from training.report import IMPORTED, write_import_card
from training.tasks import TASKS, Example, Task, data_digest


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a LoRA is to become.

    Attributes:
        name: of the adapter.
        task: what it is asked.
        method: what makes it stochastic: nothing, or noise that is added to it.
        anchors: examples that say how much noise.
        max_tokens: longest input, template and cue included.
        seed: of the noise, and of the choice of anchors.
    """

    name: str
    task: Task
    method: Mle | Tfb
    anchors: Sequence[Example] = ()
    max_tokens: int = 300
    seed: int = 0


def import_loras(
    source: Path | str,
    out: Path,
    wanted: Wanted,
    *,
    base_model: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quantize: Quantize = "none",
) -> Path:
    """Writes a complete adapter, which accepts nothing until it is calibrated.

    Args:
        source: folder of a PEFT LoRA, of several, or a hub id.
        out: folder to write.
        wanted: what it is to become.
        base_model: what it stands on; None: what the LoRA names.
        device: see `load_base_model`.
        dtype: likewise.
        quantize: likewise.

    Returns:
        `out`.

    Raises:
        AdapterError: the LoRA is damaged, has what cannot be carried over, or does not fit the
            base model; or `out` exists.
        BaseModelError: the base model cannot be had.
        ConfigError: the task does not fit the base model, or the method the LoRA.
    """
    if out.exists():
        raise AdapterError(f"{out} exists: name a folder that does not")
    loras = read_plain_loras(source)
    if len(loras) > 1 and isinstance(wanted.method, Tfb):
        raise ConfigError(
            f"method: {source} holds {len(loras)} LoRAs, which are an ensemble; tfb is for one"
        )
    base = load_base_model(
        base_model or _named_base(loras), device=device, dtype=dtype, quantize=quantize
    )
    if base.kind == "encoder":
        raise AdapterError(f"{base.name} is an encoder: LoRAs of language models are imported")
    if problem := too_long(base.model, wanted.max_tokens):
        raise ConfigError(f"max_tokens: {base.name} {problem}")
    tokenizer = PromptTokenizer(base.tokenizer, asked(wanted.task, base), wanted.max_tokens)
    scope = _scope(loras, tokenizer)
    for lora in loras:
        _check_fit(lora, base)
    model, posterior = _attached(base, loras, wanted)
    try:
        bank = BankSpec(samples=len(loras), seed=wanted.seed)
        if isinstance(wanted.method, Tfb):
            bank = BankSpec(seed=wanted.seed)
            posterior = _with_noise(model, wanted, base, tokenizer, scope, bank)
        manifest = Manifest(
            name=wanted.name,
            method=wanted.method.name if len(loras) == 1 else "ensemble",
            posterior=posterior.model_dump(),
            method_parameters=_parameters(wanted, posterior),
            scope=scope,
            base_model=BaseReference.to(base),
            prompt=tokenizer.format,
            cue_tokens=list(tokenizer.cue_ids),
            label_tokens=label_tokens(tokenizer),
            modules=list(stochastic_layers(model)),
            max_tokens=wanted.max_tokens,
            bank=bank,
            training=_origin(source, wanted),
            versions=library_versions(),
        )
        save_adapter(model, manifest, out, _weight_dtype(loras, wanted))
    finally:
        detach(model)
    write_import_card(out, manifest.model_dump())
    return out


def _named_base(loras: Sequence[PlainLora]) -> str:
    """The base model that all of them name."""
    first = loras[0]
    if first.base_model is None:
        raise ConfigError(f"{first.path} does not name its base model: give it with --base-model")
    for lora in loras:
        if lora.revision is not None:
            raise ConfigError(
                f"{lora.path}: its base model is {lora.base_model} at revision {lora.revision}: "
                "download that, and name its folder with --base-model"
            )
        if lora.base_model != first.base_model:
            raise AdapterError(
                f"{lora.path} stands on {lora.base_model}, {first.path} on {first.base_model}: "
                "an ensemble has one base model"
            )
    return first.base_model


def _scope(loras: Sequence[PlainLora], tokenizer: PromptTokenizer) -> Scope:
    """Which rows they act on."""
    invoked = {lora.invoked_by for lora in loras}
    if invoked == {None}:
        return "all_tokens"
    if invoked == {tokenizer.cue_ids}:
        return "answer_tokens"
    found = next(tokens for tokens in invoked if tokens != tokenizer.cue_ids)
    acts = "acts on every token" if found is None else f"is invoked by the tokens {list(found)}"
    raise AdapterError(
        f"the LoRA {acts}, but the task's answer cue is {list(tokenizer.cue_ids)}: name the task "
        "that it was trained for, with its exact answer_cue"
    )


def _check_fit(lora: PlainLora, base: BaseModel) -> None:
    """Refuses a LoRA of another model, or one with a base model of its own."""
    modules = dict(base.model.named_modules())
    for name, update in lora.updates.items():
        module = modules.get(name)
        if not isinstance(module, nn.Linear):
            raise AdapterError(f"{lora.path} adapts {name}, which {base.name} has no linear of")
        found = len(update.up), update.down.shape[1]
        own = module.out_features, module.in_features
        if found != own:
            raise AdapterError(
                f"{lora.path}: its update of {name} is {found[0]} × {found[1]}, but {base.name} "
                f"has {own[0]} × {own[1]} there"
            )
    for name, copy in lora.base_weights.items():
        weight: Tensor | None = getattr(modules.get(name), "weight", None)
        if weight is None or not torch.equal(weight.cpu(), copy.to(weight.dtype)):
            raise AdapterError(
                f"{lora.path} brings weights of its own for {name}, which cannot be imported: only "
                "A and B can"
            )


def _attached(
    base: BaseModel, loras: Sequence[PlainLora], wanted: Wanted
) -> tuple[StochasticPeftModel, Posterior]:
    """The base with the LoRAs as one adapter, and how that is stochastic."""
    updates = side_by_side([lora.updates for lora in loras])
    several = len(loras) > 1
    posterior = Ensemble(members=len(loras)) if several else wanted.method.posterior()
    first = next(iter(updates.values()))
    rank = len(first.down)
    config = lora_config(rank, first.scale * rank, _targets(updates, base.model), base.name)
    model: StochasticPeftModel = attach(base.model, config, posterior)
    with torch.no_grad():
        for name, layer in stochastic_layers(model).items():
            layer.down.copy_(updates[name].down)
            layer.up.copy_(updates[name].up)
    if isinstance(wanted.method, Tfb):
        wanted.method.finish(module_tensors(model))
    return model.requires_grad_(False).eval(), posterior


def _targets(updates: Updates, model: nn.Module) -> list[str]:
    """Last names of the modules, where all that are called so are adapted; else the full names."""
    last = {name.rpartition(".")[2] for name in updates}
    so_called = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in last
    }
    return sorted(last if so_called == updates.keys() else updates)


def _with_noise(
    model: StochasticPeftModel,
    wanted: Wanted,
    base: BaseModel,
    tokenizer: PromptTokenizer,
    scope: Scope,
    bank: BankSpec,
) -> Posterior:
    """The posterior that the anchors bear."""
    if not wanted.anchors:
        raise ConfigError("method: tfb needs anchors, examples of the task")
    arranged = arrange(base.model)

    def under(posterior: Posterior) -> Predictor:
        return Predictor(
            model,
            tokenizer,
            posterior,
            bank,
            scope,
            card=Card(base.name, wanted.name, "", wanted.method.name),
            policy=Policy.never(),
            arranged=arranged,
        )

    trained = TrainedAdapter(
        model,
        under,
        examples=wanted.anchors,
        holdout=(),
        bank=bank,
        seed=wanted.seed,
        prompt_cache=PromptCache(0),
    )
    return wanted.method.after_training(trained).posterior


def _parameters(wanted: Wanted, posterior: Posterior) -> dict[str, float]:
    """For the reader, as a run records them."""
    if isinstance(posterior, Ensemble):
        return {"members": posterior.members}
    return wanted.method.model_dump(include={"anchors", "tolerance", "bisections"})


def _weight_dtype(loras: Sequence[PlainLora], wanted: Wanted) -> WeightDtype:
    """bfloat16 where A and B are that and stay what they are, else float32."""
    scales = {update.scale for lora in loras for update in lora.updates.values()}
    rounded = all(lora.dtype == torch.bfloat16 for lora in loras)
    as_they_are = rounded and len(scales) == 1 and not isinstance(wanted.method, Tfb)
    return "bfloat16" if as_they_are else "float32"


def _origin(source: Path | str, wanted: Wanted) -> dict[str, object]:
    """`Manifest.training`; of a folder only its name, for the path says nothing elsewhere."""
    task = wanted.task
    path = Path(source)
    return {
        IMPORTED: path.resolve().name if path.exists() else str(source),
        "task": task.name if task.name in TASKS else task.model_dump(),
        "anchors": len(wanted.anchors),
        "data_digest": data_digest(wanted.anchors) if wanted.anchors else None,
    }
