"""Fits an adapter's novelty features, see `dalorra.decision.novelty`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from dalorra.decision.novelty import Novelty
from dalorra.errors import ConfigError
from training.answers import Evaluable, encode_example
from training.config import UNUSED, DataConfig
from training.data import divide
from training.off_domain import off_domain_prompts
from training.orthography import Augment, spellings
from training.report import IMPORTED
from training.tasks import Example, split_off, subsample

REFERENCE_EXAMPLES = 600
"""Training examples whose features are fitted, in two spellings: enough for 128 components."""

OF_A_CLASS = 10
"""Examples of each label among them, at least, as far as there are any: enough for its mean."""

CALIBRATION_EXAMPLES = 1000
"""Held-out examples that are scored, in all spellings, at most. A share of 1 %, with 95 %
confidence, takes 299 and lies below the highest score of these; of 1,000 it lies below the fifth
highest, and depends the less on single examples."""


def fit_novelty(
    predictor: Evaluable,
    training: Sequence[Example],
    calibration: Sequence[Example],
    *,
    augment: Augment = "orthography",
    seed: int = 0,
    limits: tuple[int, int] = (REFERENCE_EXAMPLES, CALIBRATION_EXAMPLES),
) -> Novelty:
    """Learns where the training data lie and how far off unseen inputs like them are.

    Args:
        predictor: an adapter on its base model.
        training: inputs that it was trained on.
        calibration: inputs from the same source that it was not trained on: the p-value is valid
            for inputs that are exchangeable with these.
        augment: `orthography`: the training data as they are and in one other spelling each, and
            every calibration example as the farthest of its spellings, so that the p-value is
            valid however an input is spelt; `none`: as they are.
        seed: picks those that are used.
        limits: on the number of the two, but for `OF_A_CLASS`. Texts of other kinds, which pick a
            level where none is asked for, are scored beside them.

    Raises:
        ConfigError: too few examples.
        InputError: an input does not fit the adapter's template.
    """
    if len(training) < 2 or not calibration:
        raise ConfigError(
            "novelty needs at least two training examples and one that was not trained on"
        )
    reference = novelty_reference(training, augment=augment, seed=seed, limit=limits[0])
    unseen = [
        _variants(one, augment)
        for one in subsample(calibration, min(limits[1], len(calibration)), seed)
    ]
    foreign = off_domain_prompts(predictor)
    return Novelty.fit(
        _features(predictor, [[one] for one in reference]).flatten(0, 1),
        _features(predictor, unseen),
        torch.stack([predictor.novelty_features(prompts) for prompts in foreign.values()]),
        adapter_digest=predictor.card.digest,
        classes=[one.label for one in reference],
    )


def novelty_reference(
    training: Sequence[Example],
    *,
    augment: Augment = "orthography",
    seed: int = 0,
    limit: int = REFERENCE_EXAMPLES,
) -> list[Example]:
    """The examples whose features tell where the training data lie; see `fit_novelty`."""
    near = (_variants(one, augment) for one in _of_all_classes(training, limit, seed))
    return [variants[j] for i, variants in enumerate(near) for j in sorted({0, i % len(variants)})]


def _variants(example: Example, augment: Augment) -> list[Example]:
    return spellings(example) if augment == "orthography" else [example]


def _of_all_classes(examples: Sequence[Example], limit: int, seed: int) -> list[Example]:
    """As many examples, and more of the labels that would have fewer than `OF_A_CLASS` then."""
    drawn = subsample(examples, min(limit, len(examples)), seed)
    found = Counter(example.label for example in drawn)
    by_label: dict[str, list[Example]] = {}
    for example in examples:
        by_label.setdefault(example.label, []).append(example)
    scarce = {label: some for label, some in by_label.items() if found[label] < OF_A_CLASS}
    return [example for example in drawn if example.label not in scarce] + [
        example
        for some in scarce.values()
        for example in subsample(some, min(OF_A_CLASS, len(some)), seed)
    ]


def novelty_limit(
    novelty: Novelty | None, share: float | None, confidence: float
) -> tuple[float, str]:
    """The novelty level of a policy, and what it promises in words; 0 and nothing for no level.

    Args:
        novelty: of the adapter.
        share: of usual inputs that may be escalated for novelty; 0: no level; None: the one that
            suits texts of other kinds best, where the adapter has novelty features.
        confidence: over the draw of the examples that were held out to calibrate the features.

    Raises:
        ConfigError: no features for a share, or too few examples behind them.
    """
    if share == 0.0 or (novelty is None and share is None):
        return 0.0, ""
    if novelty is None:
        raise ConfigError(
            "a novelty level needs novelty features, which the adapter does not have: fit them "
            "with `dalorra novelty`, or leave the level out"
        )
    if share is None:
        share, level = novelty.pick(confidence)
    else:
        level = novelty.level(share, confidence)
    return level, (
        f"usual inputs that are escalated for novelty ≤ {share:g} with {100 * confidence:.6g} % "
        f"confidence over the draw of {len(novelty.calibration):,} held-out examples"
    )


def trained_and_held_out(
    training: Mapping[str, Any], examples: Sequence[Example]
) -> tuple[list[Example], list[Example]]:
    """The examples that an adapter was trained on, and those that its run held out.

    What an imported LoRA was trained on is not known: the examples are halved.

    Args:
        training: what its `dalorra.json` says of the run.
        examples: of the task's training split.

    Raises:
        ConfigError: it says too little, or the examples are not those of the run.
    """
    if IMPORTED in training:
        return split_off(examples, 0.5, 0)
    try:
        config, digest = training["config"], training["data_digest"]
        data = DataConfig.model_validate({**UNUSED, **config["data"]})
        seed, calibration = int(config["seed"]), int(training.get("calibration", 0))
    except (KeyError, TypeError, ValidationError) as error:
        raise ConfigError(
            "the adapter does not say which examples it was trained on: train it again with this "
            "release"
        ) from error
    parts = divide(examples, data, calibration=calibration, seed=seed)
    if parts.digest != digest:
        raise ConfigError(
            "these are not the examples that the adapter was trained on: name the training data "
            "of its run with --data"
        )
    return parts.train, parts.holdout


def _features(predictor: Evaluable, variants: Sequence[Sequence[Example]]) -> Tensor:
    """`[n, v, D, d]` of n examples in v variants; variants that are the same are read once."""
    prompts = [
        encode_example(predictor, one, n) for n, some in enumerate(variants, 1) for one in some
    ]
    place = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    found = predictor.novelty_features(list(place))[[place[prompt] for prompt in prompts]]
    return found.view(len(variants), -1, *found.shape[1:])
