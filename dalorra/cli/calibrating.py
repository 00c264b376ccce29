"""Choosing an adapter's thresholds."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dalorra.cli.console import EXIT_NOTHING_QUALIFIES, refuse
from dalorra.cli.labelled import Labelled, Place
from dalorra.cli.options import (
    BaseModelOption,
    DataSource,
    Device,
    OwnAdapter,
    Quantize,
    Split,
    TaskReference,
    named,
    numbers,
)
from dalorra.errors import ConfigError

if TYPE_CHECKING:
    from dalorra.adapter.directory import Adapter
    from dalorra.base import quantized
    from dalorra.decision.policy import Policy
    from dalorra.predictor import Predictor
    from dalorra.questions import Question
    from training.promise import Promise


class Temperature(StrEnum):
    """When `dalorra calibrate` fits one."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


def calibrate(
    adapter: OwnAdapter,
    target_error: Annotated[
        float, typer.Option(help="Largest error rate (with costs: mean cost) among accepted.")
    ],
    confidence: Annotated[
        float, typer.Option(help="Probability, over the draw of the data, that it is kept.")
    ] = 0.95,
    data: DataSource = None,
    task: TaskReference = None,
    split: Split = None,
    question: Annotated[
        Path | None,
        typer.Option(
            help="File with one question, as /v1/systemone takes it: thresholds for it alone, from "
            "data with the columns state and label.",
            show_default="none",
        ),
    ] = None,
    from_feedback: Annotated[
        str | None,
        typer.Option(
            help="Feedback store of a server, a file or postgresql://…, in place of data.",
            show_default="none",
        ),
    ] = None,
    class_target: Annotated[
        list[str] | None,
        typer.Option(help="label=rate, largest error rate where that label is accepted."),
    ] = None,
    cost: Annotated[
        list[str] | None,
        typer.Option(help="label=cost or true:label=cost of a false accept; others cost 1."),
    ] = None,
    temperature: Annotated[
        Temperature,
        typer.Option(help="One for the label logits: fitted where it helps, always, or never."),
    ] = Temperature.AUTO,
    novelty_level: Annotated[
        float | None,
        typer.Option(
            help="Largest share of usual inputs to escalate for novelty; 0: no limit on novelty.",
            show_default="picked on texts of other kinds",
        ),
    ] = None,
    out_of_scope: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=0.9,
            help="Share of inputs that no label answers, taken from those of the task; accepted, "
            "each is an error.",
        ),
    ] = 0.0,
    look_again: Annotated[
        bool,
        typer.Option(
            "--look-again",
            help="Test on inputs that were tested on before, and promise less for it.",
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="File to write.", show_default="in the adapter's folder")
    ] = None,
    base_model: BaseModelOption = None,
    device: Device = "auto",
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            help="auto, float32 or bfloat16; repeat it for a promise that holds in each.",
            show_default="auto",
        ),
    ] = None,
    quantize: Quantize = None,
) -> None:
    """Choose thresholds whose error among accepted answers stays within a target.

    Needs labelled data that the adapter was neither trained nor selected on, and no calibration
    with other options has seen. Exits with code 3, and writes a policy that accepts nothing, when
    no thresholds keep the target.
    """
    from dalorra.adapter.directory import read_adapter
    from dalorra.adapter.hub import own_folder
    from dalorra.cli.question_file import read_question
    from dalorra.decision.policy_digest import with_digest
    from dalorra.decision.question_policies import keep_question_policy
    from dalorra.question_prompts import QuestionFormat
    from training.calibrate import unpromised
    from training.promise import Promise, promise_in_words
    from training.question_scores import thresholds_in_words

    promise = Promise(
        target_error,
        confidence,
        numbers(class_target or (), "--class-target"),
        numbers(cost or (), "--cost"),
    )
    in_words = promise_in_words
    # Of the policy that is there, only the temperature that answers were served at is of use.
    read = read_adapter(own_folder(adapter), hand_made_policies=True)
    asked = None if question is None else read_question(question)
    if asked is not None and not isinstance(read.manifest.prompt, QuestionFormat):
        raise ConfigError(f"{adapter} has labels of its own and answers no other questions")
    test = _Test(adapter, read, promise, novelty_level, look_again)
    if from_feedback is not None:
        given = data or task or split or question or out_of_scope
        if given or temperature is not Temperature.AUTO:
            raise ConfigError(
                "--from-feedback brings labelled answers as they were served: leave out --data, "
                "--task, --split, --question, --out-of-scope and --temperature"
            )
        policy = test.on_feedback(from_feedback)
    else:
        place = Place(adapter, data, task, split)
        found = (
            place.to_calibrate(read.manifest, out_of_scope)
            if asked is None
            else place.of_question(asked)
        )
        bits = named(quantize)
        predictors = _predictors(adapter, base_model, device, dtype or ["auto"], bits)
        settings: dict[str, Any] = {"temperature": temperature.value, "dtype": dtype or ["auto"]}
        settings |= {"quantize": bits} if bits else {}
        policy = test.on_examples(found, predictors, settings, asked)
        if found.new_kinds is not None:
            policy, in_words = unpromised(policy), thresholds_in_words
    if asked is None:
        with_digest(policy).save(out or adapter)
    else:
        keep_question_policy(out or adapter, asked, policy)
    if policy.never_accepts:
        refuse(in_words(policy))
        raise typer.Exit(EXIT_NOTHING_QUALIFIES)
    typer.echo("\n".join(filter(None, [in_words(policy), *test.said])))


def _predictors(
    adapter: Path,
    base_model: str | None,
    device: str,
    dtypes: Iterable[str],
    quantize: "quantized.Quantize | None",
) -> "Iterable[Predictor]":
    """The adapter in each precision, loaded when it is asked for."""
    from dalorra.predictor import Predictor

    for dtype in dtypes:
        predictor = Predictor.load(
            adapter, base_model, device=device, dtype=dtype, quantize=quantize
        )
        predictor.question_policies = {}  # what is calibrated takes their place
        yield predictor


@dataclass
class _Test:
    """One calibration, whatever it is on.

    Attributes:
        adapter: its folder.
        read: what that holds.
        promise: what must hold.
        novelty_level: share of usual inputs that may be escalated for novelty.
        again: whether to pay for earlier looks at the same inputs.
        said: what is to be printed beside the promise.
    """

    adapter: Path
    read: "Adapter"
    promise: "Promise"
    novelty_level: float | None
    again: bool

    def __post_init__(self) -> None:
        from training.novelty import novelty_limit

        novelty = self.read.novelty
        self._level, in_words = novelty_limit(novelty, self.novelty_level, self.promise.confidence)
        self.said = [in_words]
        self._settings: dict[str, Any] = {
            "novelty_level": self._level,
            "novelty_digest": novelty.digest if novelty and self._level else None,
        }

    def on_feedback(self, store: str) -> "Policy":
        """On answers as they were served."""
        from service.feedback.export import read_labelled
        from service.feedback.places import SCHEMES
        from training.from_feedback import calibrate_from_feedback
        from training.looks import look_at_feedback, take_look

        read, settings = self.read, self._settings
        served_at = read.policy.temperature if read.policy else 1.0
        answers = read_labelled(
            store if store.startswith(SCHEMES) else Path(store),
            read.digest,
            temperature=served_at,
            samples=read.manifest.bank.samples,
            novelty_digest=settings["novelty_digest"],
        )
        settings = settings | {"temperature": served_at}
        return take_look(
            self.adapter,
            look_at_feedback(answers, read.digest, self.promise, settings),
            lambda: calibrate_from_feedback(read, answers, self.promise, min_novelty_p=self._level),
            again=self.again,
        )

    def on_examples(
        self,
        found: Labelled,
        predictors: "Iterable[Predictor]",
        settings: dict[str, Any],
        question: "Question | None",
    ) -> "Policy":
        """On labelled examples, in each precision; `settings` decide the outcome, too."""
        from training.calibrate import calibrate as run_calibration
        from training.looks import look_at, take_look
        from training.off_domain import accepted_by_kind, off_domain_in_words

        read, novelty = self.read, self.read.novelty

        def tested() -> "Policy":
            loaded = iter(predictors)
            predictor = next(loaded)
            policy = run_calibration(
                predictor,
                found.examples,
                self.promise,
                source=found.source,
                bank=read.manifest.bank.identity,
                temperature=settings["temperature"],
                min_novelty_p=self._level,
                novelty_digest=novelty.digest if novelty else None,
                others=loaded,
                out_of_scope=found.out_of_scope,
                quiet=False,
            )
            self.said.append(off_domain_in_words(accepted_by_kind(predictor, question)))
            return policy

        look = look_at(
            found.examples, read.digest, self.promise, self._settings | settings, found.source
        )
        return take_look(self.adapter, look, tested, again=self.again)
