"""An adapter on disk: one directory, one digest, safetensors and JSON only.

    adapter_config.json         PEFT's own description (rank, alpha, modules)
    adapter_model.safetensors   A, B and the tensors of the posterior, such as the mask logits φ;
                                where labels are classes also their head
    dalorra.json                `Manifest`: everything else that decides an answer
    policy.json                 thresholds; names the digests that it was made for
    question_policies.json      the same of single questions
    questions.json              questions in words that its labels answer
    laplace.safetensors         a Laplace posterior's factors, whose digest `dalorra.json` names
    novelty.safetensors         where the training data lie; names the digest that it was made for
    looks.json                  what its policies were tested on; no answer depends on it
    README.md                   model card

Reading checks what can be checked without the base model; `load_adapter` checks the rest.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Final, Literal

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dalorra.adapter.hub import located
from dalorra.adapter.layer import (
    StochasticPeftModel,
    attach,
    detach,
    foreign_setting,
    stochastic_layers,
)
from dalorra.adapter.manifest import MANIFEST_FILE, Manifest, posterior_of, read_manifest
from dalorra.adapter.registered import QUESTIONS_FILE, RegisteredQuestion, read_registered
from dalorra.base.families import head_modules, set_head, too_long
from dalorra.base.model import BaseModel
from dalorra.decision.novelty import NOVELTY_FILE, Novelty
from dalorra.decision.policy import POLICY_FILE, Policy
from dalorra.decision.policy_digest import checked
from dalorra.decision.question_policies import read_question_policies
from dalorra.errors import AdapterError
from dalorra.posteriors import Posterior

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
DIGESTED_FILES: Final = (CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE)

WeightDtype = Literal["bfloat16", "float32"]

_WEIGHTS: Final = (".lora_A.weight", ".lora_B.weight")


@dataclass(frozen=True, slots=True)
class Adapter:
    """What a directory holds, verified as far as is possible without the base model.

    Attributes:
        tensors: A, B and φ, and the head of classes, by PEFT's names.
        policy: None when the directory has none; one that never accepts, and says why, when it was
            made for another adapter, bank or novelty, or by hand and that is not allowed.
        digest: sha256 over the three files that decide a prediction. The novelty features are not
            among them, because they are fitted on the adapter as it is and change no probability;
            they have a digest of their own, which a policy with a novelty level names.
        novelty: None when the directory has none.
        registered: questions in words that its labels answer.
        question_policies: `Question.digest` → policy of a single question, void as `policy` is.
    """

    path: Path
    manifest: Manifest
    posterior: Posterior
    config: LoraConfig
    tensors: Mapping[str, Tensor]
    policy: Policy | None
    digest: str
    novelty: Novelty | None = None
    registered: tuple[RegisteredQuestion, ...] = ()
    question_policies: Mapping[str, Policy] = field(default_factory=dict)


def adapter_digest(path: Path) -> str:
    """sha256 over names and contents of `DIGESTED_FILES`, hexadecimal."""
    digest = hashlib.sha256()
    for name in DIGESTED_FILES:
        content = (path / name).read_bytes()
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def read_adapter(reference: Path | str, *, hand_made_policies: bool = False) -> Adapter:
    """Reads and verifies an adapter directory.

    Args:
        reference: the directory, or the adapter's id on the hub, see `located`.
        hand_made_policies: whether policies may accept that are not as calibration wrote them, see
            `policy_digest`.

    Raises:
        AdapterError: a missing, damaged or unknown part; the message names it.
    """
    path = _complete(reference)
    manifest = read_manifest(path / MANIFEST_FILE)
    posterior = posterior_of(manifest, path / MANIFEST_FILE)
    try:
        config = LoraConfig.from_pretrained(str(path))
    except (ValueError, TypeError, KeyError, json.JSONDecodeError) as error:
        raise AdapterError(f"{path / CONFIG_FILE} is not a PEFT LoRA config: {error}") from error
    if (foreign := foreign_setting(config, has_head=manifest.prompt.by_head)) is not None:
        raise AdapterError(
            f"{path / CONFIG_FILE} is not a PEFT LoRA config that DALorRA can serve: {foreign} is "
            f"{getattr(config, foreign)!r}"
        )
    try:
        tensors = load_file(path / WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"{path / WEIGHTS_FILE} is damaged or truncated ({error}): copy it again"
        ) from error
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"{path / WEIGHTS_FILE}: {name} holds a non-finite value")
    policy_path = path / POLICY_FILE
    policy = Policy.load(policy_path) if policy_path.exists() else None
    digest = adapter_digest(path)
    novelty = Novelty.load(path, digest) if (path / NOVELTY_FILE).exists() else None
    made_for = digest, manifest.bank.identity, novelty.digest if novelty else None

    def held(policy: Policy, question: str | None = None) -> Policy:
        return checked(policy, hand_made=hand_made_policies).held_to(*made_for, question)

    return Adapter(
        path,
        manifest,
        posterior,
        config,
        tensors,
        held(policy) if policy else None,
        digest,
        novelty,
        registered_questions(path, manifest),
        {
            question: held(one.policy, question)
            for question, one in read_question_policies(path).items()
        },
    )


def registered_questions(path: Path, manifest: Manifest) -> tuple[RegisteredQuestion, ...]:
    """The questions in words that an adapter's labels answer.

    Raises:
        AdapterError: their file is damaged, or does not fit the labels.
    """
    if not (path / QUESTIONS_FILE).exists():
        return ()
    return read_registered(path, tuple(manifest.labelled.labels))


def _complete(reference: Path | str) -> Path:
    """Where the files of an adapter are, all of them."""
    path = located(reference)
    if not path.is_dir():
        raise AdapterError(f"{path} is not a directory: name a folder that `dalorra train` wrote")
    if (path / CONFIG_FILE).is_file() and not (path / MANIFEST_FILE).exists():
        raise AdapterError(
            f"{path} has no {MANIFEST_FILE}: it is a plain PEFT adapter, of which `dalorra import "
            f"{reference} OUT --task task.yaml` makes a complete one"
        )
    for name in DIGESTED_FILES:
        if not (path / name).is_file():
            raise AdapterError(f"{path} has no {name}: it is not a complete DALorRA adapter")
    return path


def bundled_adapter(name: str = "sentiment") -> Path:
    """An adapter that ships with the package, the default one if none is named."""
    return Path(str(files("dalorra") / "bundled" / name))


def bundled_adapters() -> dict[str, Path]:
    """All of them by name, the default one first."""
    default = bundled_adapter()
    others = sorted(path for path in default.parent.iterdir() if (path / MANIFEST_FILE).is_file())
    return {path.name: path for path in (default, *(p for p in others if p != default))}


def check_base(adapter: Adapter, base: BaseModel) -> None:
    """Refuses a base model that the adapter was not made for.

    Raises:
        AdapterError: it was trained on another, or its novelty features are of another width.
    """
    reference = adapter.manifest.base_model
    if base.digest != reference.digest:
        raise AdapterError(
            f"{adapter.path} was trained on {reference.name} ({reference.digest[:12]}…), but the "
            f"base model is {base.name} ({base.digest[:12]}…)"
        )
    if base.kind != reference.kind:
        raise AdapterError(
            f"{adapter.path / MANIFEST_FILE} calls its base model of kind {reference.kind!r}, but "
            f"{base.name} is of kind {base.kind!r}"
        )
    width = base.model.config.hidden_size
    if adapter.novelty and adapter.novelty.width != width:
        raise AdapterError(
            f"{adapter.path}: its novelty features have {adapter.novelty.width} numbers, but the "
            f"hidden states of {base.name} have {width}; fit them with `dalorra novelty`"
        )


@contextmanager
def attached(adapter: Adapter, base: BaseModel) -> Iterator[StochasticPeftModel]:
    """The base model with a read adapter attached, inside the block; afterwards it is as it was.

    Raises:
        AdapterError: see `load_adapter`; whatever the block finds wrong names the directory, too.
    """
    model = load_adapter(adapter, base)
    try:
        yield model
    except AdapterError as error:
        raise AdapterError(f"{adapter.path}: {error}") from error
    finally:
        detach(model)


def load_adapter(adapter: Adapter, base: BaseModel) -> StochasticPeftModel:
    """Attaches a read adapter to its base model; on failure the base stays as it was.

    Raises:
        AdapterError: another base model, inputs that are too long for it, a missing or unknown
            tensor, or a wrong shape.
    """
    check_base(adapter, base)
    if problem := too_long(base.model, adapter.manifest.max_tokens):
        raise AdapterError(f"{adapter.path / MANIFEST_FILE}: max_tokens: {base.name} {problem}")
    if adapter.manifest.prompt.by_head:
        _prepare_head(adapter, base)
    try:
        model: StochasticPeftModel = attach(base.model, adapter.config, adapter.posterior)
    except ValueError as error:
        raise AdapterError(f"{adapter.path} does not fit {base.name}: {error}") from error
    problem = _first_mismatch(adapter_tensors(model), adapter.tensors)
    if list(stochastic_layers(model)) != adapter.manifest.modules:
        problem = f"{MANIFEST_FILE} lists other modules than the base model and rank need"
    if problem:
        detach(model)
        raise AdapterError(f"{adapter.path}: {problem}")
    set_peft_model_state_dict(model, {k: v.float() for k, v in adapter.tensors.items()})
    model.requires_grad_(False)
    return model.eval()


def _prepare_head(adapter: Adapter, base: BaseModel) -> None:
    """A head of the adapter's size; what it may not be that `attach` does not see is refused."""
    head = head_modules(base.model)
    if tuple(adapter.config.modules_to_save or ()) != head:
        raise AdapterError(
            f"{adapter.path / CONFIG_FILE}: modules_to_save must be the head of {base.name}, "
            f"{', '.join(head)}"
        )
    set_head(base.model, len(adapter.manifest.labelled.labels))


def _first_mismatch(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is not part of this adapter's configuration"
        if expected[name].shape != found[name].shape:
            return (
                f"{name} has shape {list(found[name].shape)}, the base model and rank need "
                f"{list(expected[name].shape)}"
            )
    return None


def adapter_tensors(model: StochasticPeftModel) -> dict[str, Tensor]:
    """A, B, the posterior's tensors and the head of classes by PEFT's names, detached.

    Never a weight of the base.
    """
    state: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach() for name, tensor in state.items()}


def round_adapter(model: StochasticPeftModel, dtype: WeightDtype) -> None:
    """Rounds A and B in place to what `save_adapter` will store, so both answer alike."""
    target = getattr(torch, dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                parameter.copy_(parameter.to(target))


def save_adapter(
    model: StochasticPeftModel, manifest: Manifest, path: Path, dtype: WeightDtype = "bfloat16"
) -> str:
    """Writes the directory atomically: a reader sees the old one, the new one, or none.

    All else stays in float32, whatever `dtype` is used for A and B. Other files in an existing
    directory (model card, policy) are not carried over: they describe other weights.

    Returns:
        The adapter's digest.
    """
    config = model.peft_config["default"]
    config.base_model_name_or_path = manifest.base_model.name
    config.inference_mode = True
    tensors = {
        name: tensor.to(
            "cpu", getattr(torch, dtype) if name.endswith(_WEIGHTS) else torch.float32
        ).contiguous()
        for name, tensor in adapter_tensors(model).items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        config.save_pretrained(str(staging))
        save_file(tensors, staging / WEIGHTS_FILE, metadata={"format": "pt"})
        (staging / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", "utf-8")
        staging.chmod(0o755)
        (staging / WEIGHTS_FILE).chmod(0o644)  # safetensors makes it private
        if path.exists():
            shutil.rmtree(path)
        staging.replace(path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return adapter_digest(path)
