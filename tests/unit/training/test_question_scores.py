"""Scores of questions, by an adapter that is known to be right about some kinds and not others."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from dalorra.adapter.manifest import Card
from dalorra.decision.policy import Policy
from dalorra.decision.predictive import PosteriorSamples, Prediction, summarise
from dalorra.errors import ConfigError
from dalorra.questions import Asked, Option, Question
from training.calibrate import calibrate
from training.evaluate import evaluate
from training.promise import Promise
from training.question_scores import (
    OPEN,
    Kinds,
    calibrated_on_kinds,
    order_sensitivity,
    thresholds_in_words,
)
from training.tasks import Example

BANK = {"seed": 1}


@dataclass
class Knowing:
    """Answers a question by what its state says: `7 sure` is right, `7 unsure` says little.

    The right option is the one called after the number; by `place`, the first one is preferred.
    """

    place: float = 0.0
    policy: Policy = field(default_factory=Policy.never)
    labels: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    samples: int = 4
    scope: str = "answer_tokens"
    precision: str = "float32 on cpu"
    card: Card = field(default_factory=lambda: Card("base", "knowing", "digest", "dalorra"))

    def encode(self, value: Asked) -> Any:
        return _Encoded(value)

    def _logits(self, prompt: Any) -> torch.Tensor:
        number, sure = prompt.asked.state.split()
        strength = {"sure": 6.0, "unsure": 0.3, "wrong": -6.0}[sure]
        names = [option.name for option in prompt.asked.question.options]
        logits = torch.tensor([strength * (name == number) for name in names])
        logits[0] += self.place
        return logits + 0.01 * torch.arange(4.0)[:, None]

    def posterior_samples(self, prompts: Sequence[Any]) -> PosteriorSamples:
        p = torch.stack([self._logits(prompt).softmax(-1) for prompt in prompts])
        return PosteriorSamples(p[:, :, None], torch.ones(1))

    def predict(self, prompts: Sequence[Any]) -> list[Prediction]:
        found = []
        for prompt in prompts:
            tempered = self.policy.tempered(self.posterior_samples([prompt]))
            names = [option.name for option in prompt.asked.question.options]
            found += summarise(tempered, names)
        return found

    predict_mean = predict


@dataclass
class _Encoded:
    asked: Asked
    truncated: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        return tuple(option.name for option in self.asked.question.options)

    @property
    def tokens(self) -> int:
        return len(self.asked.state)


def ask(n: int, how: str, kind: str, options: int = 4) -> Example:
    names = tuple(Option(str((n + k) % 100)) for k in range(options))
    question = Question("choice", f"Which, {n}?", (*names[1:], names[0]))
    return Example(Asked(f"{n % 100} {how}", question), str(n % 100), kind=kind)


EASY = [ask(n, "sure", "easy", 2 + n % 4) for n in range(60)]
HARD = [ask(n, "wrong" if n % 2 else "unsure", "hard") for n in range(60)]


def test_options_of_any_number_are_scored_by_kind(tmp_path):
    predictor = Knowing()
    calibrated_on_kinds(predictor, EASY[:40], Promise(0.2), BANK)
    kinds = Kinds(predictor, EASY + HARD, ["hard"], Promise(0.2))
    found = evaluate(predictor, EASY + HARD, tmp_path, more=kinds, quiet=True)
    assert found["kinds"]["easy"]["accuracy"] == 1.0
    assert found["kinds"]["easy"]["trained_on"]
    assert found["kinds"]["easy"]["accepted"] == 1.0
    assert found["kinds"]["hard"]["trained_on"] is False
    assert found["kinds"]["hard"]["error"] in (None, pytest.approx(1.0))
    by_hand = [
        p.probabilities[e.label]
        for p, e in zip(predictor.predict([_Encoded(e.input) for e in EASY]), EASY, strict=True)
    ]  # type: ignore[arg-type]
    nll = -sum(map(math.log, by_hand)) / len(by_hand)
    assert found["kinds"]["easy"]["nll"] == pytest.approx(nll)
    assert (tmp_path / "metrics.json").exists()


def test_thresholds_are_judged_on_the_kind_that_had_no_part_in_them():
    predictor = Knowing()
    examples = EASY + HARD
    kinds = Kinds(predictor, examples, ["easy", "hard"], Promise(0.2))
    across = evaluate(predictor, examples, more=kinds, quiet=True)["across_kinds"]
    assert set(across) == {"easy", "hard"}
    assert across["hard"]["error"] is None or across["hard"]["error"] > 0.9
    assert across["easy"] == {"accepted": 0.0, "error": None}  # chosen on what is mostly wrong


def test_a_policy_of_held_out_kinds_promises_nothing_and_says_so():
    predictor = Knowing()
    policy = calibrated_on_kinds(predictor, EASY, Promise(0.2), BANK)
    assert not policy.never_accepts
    assert (policy.confidence, policy.upper_bound, policy.path) == (None, None, ())
    assert (
        "kinds that were not trained on (easy); of other kinds they promise nothing"
        in policy.source
    )
    assert predictor.policy is policy
    assert policy.served_in("bfloat16 on cuda").min_probability == policy.min_probability
    assert "accepted" in thresholds_in_words(policy)
    nothing = calibrated_on_kinds(predictor, HARD, Promise(0.2), BANK)
    assert nothing.never_accepts
    assert thresholds_in_words(nothing).startswith("NOTHING IS ACCEPTED")


def test_an_open_question_that_is_accepted_is_an_error():
    open_ones = [
        Example(e.input, OPEN, (0.25,) * 4, "easy")
        for e in (ask(n, "sure", "easy") for n in range(40))
    ]
    assert calibrated_on_kinds(Knowing(), EASY + open_ones, Promise(0.2), BANK).never_accepts


def test_the_order_of_the_options_is_seen_where_it_matters():
    firm = order_sensitivity(Knowing(), EASY)  # type: ignore[arg-type]
    assert firm["n"] == sum(len(e.input.question.options) > 2 for e in EASY)  # type: ignore[union-attr]
    assert firm["mean_change"] == pytest.approx(0.0, abs=1e-6)
    assert firm["changed"] == 0.0
    drawn = order_sensitivity(Knowing(place=5.0), HARD)  # type: ignore[arg-type]
    assert drawn["mean_change"] > 0.2
    assert drawn["changed"] > 0.9
    assert order_sensitivity(Knowing(), [ask(1, "sure", "easy", 2)])["n"] == 0  # type: ignore[arg-type]


def test_costs_are_of_one_question_alone():
    costly = Promise(0.2, costs={"7": 2.0})
    with pytest.raises(ConfigError, match="these are different questions"):
        calibrate(Knowing(), EASY, costly, source="x")  # type: ignore[arg-type]
    question = Question("choice", "Which?", (Option("7"), Option("8")))
    one = [Example(Asked("7 sure", question), "7") for _ in range(60)]
    assert calibrate(Knowing(), one, costly, source="x").costs == {"7": 2.0}  # type: ignore[arg-type]


def test_a_label_that_is_no_option_is_refused():
    wrong = Example(EASY[0].input, "1000")
    with pytest.raises(ConfigError, match="example 2 has the label '1000'"):
        evaluate(Knowing(), [EASY[0], wrong], quiet=True)  # type: ignore[arg-type]
