"""Asks a trained adapter all that its experiment names, and scores the answers."""

from collections.abc import Sequence
from typing import Any

from dalorra.decision.predictive import Prediction
from dalorra.predictor import Predictor
from training.answers import Evaluable, answer, encode_example
from training.evaluate import score
from training.experiments.plane import INPUTS, plane
from training.experiments.predictions import (
    PREDICTIONS_FILE,
    LabelledAnswers,
    write_kept_answers,
    write_predictions,
)
from training.experiments.shifts import tell_apart
from training.experiments.spec import RunSpec, Shift, TaskSetting
from training.run import Run
from training.tasks import Example, load_examples, load_labelled_task, subsample
from training.temperature import temperature_on


def scores_of(spec: RunSpec, run: Run) -> dict[str, Any]:
    """Scores on the test set and the shifts, or on the hold-out; answers go to files."""
    if not spec.task.score_test:
        return {"holdout": run.holdout_metrics()}
    predictor = run.evaluable()
    test = answer(predictor, run.data.test, mean_mask=False)
    truth = [example.label for example in run.data.test]
    to_test = {"test": test.sampled}
    kept: dict[str, LabelledAnswers] = {"test": (run.data.test, test.sampled)}
    result: dict[str, Any] = {
        "samples": predictor.samples,
        "test": {
            "n": len(truth),
            "size": _size(predictor, run),
            "seconds": test.seconds["sampled"],
            **score(test.sampled, truth),
        },
        "shifts": {},
    }
    for shift in spec.task.shifts:
        examples = _shifted(shift, run)
        answers = answer(predictor, examples, mean_mask=False).sampled
        kept[shift.task] = (examples, answers)
        found = {"n": len(examples), **tell_apart(test.sampled, answers)}
        if {example.label for example in examples} <= set(predictor.labels):
            found |= score(answers, [example.label for example in examples])
        result["shifts"][shift.task] = found
    write_predictions(run.config.output_dir / PREDICTIONS_FILE, kept)
    free = predictor.predict([predictor.encode(text) for text in spec.task.inputs])
    if spec.task.inputs:
        result["inputs"] = _free_answers(spec.task.inputs, free)
    if spec.task.plane and isinstance(predictor, Predictor):
        result["plane"] = plane(predictor, _shown(spec.task, kept, predictor.fields[0], free))
    if spec.task.tempered:
        temperature, to_test["tempered"] = _tempered(predictor, run)
        result["tempered"] = {"temperature": temperature, **score(to_test["tempered"], truth)}
    write_kept_answers(run.config.output_dir, run.data.test, to_test)
    return result


def _tempered(predictor: Evaluable, run: Run) -> tuple[float, list[Prediction]]:
    """The temperature that fits the hold-out, which the policy keeps, and the answers at it."""
    temperature = temperature_on(predictor, run.data.holdout)
    predictor.policy = predictor.policy.model_copy(update={"temperature": temperature})
    return temperature, answer(predictor, run.data.test, mean_mask=False).sampled


def _shifted(shift: Shift, run: Run) -> list[Example]:
    """Examples of other data, without those that this run was trained on or scored on already."""
    task, source = load_labelled_task(shift.task), run.config.data.source
    known = {_text(example) for example in (*run.data.train, *run.data.holdout, *run.data.test)}
    examples = [
        example
        for example in load_examples(task, shift.split or task.evaluation_split, source)
        if _text(example) not in known
    ]
    limit = shift.limit
    return examples if limit is None or limit >= len(examples) else subsample(examples, limit, 0)


def _text(example: Example) -> str:
    return " ".join(" ".join(example.texts.values()).split()).lower()


def _size(predictor: Evaluable, run: Run) -> dict[str, float]:
    """Mean length of the test prompts and of the cue at their ends, and the layers they pass."""
    prompts = [encode_example(predictor, e, n) for n, e in enumerate(run.data.test, 1)]
    total = sum(len(prompt.prompt_ids) for prompt in prompts)
    return {
        "prompt": total / len(prompts),
        "cue": len(prompts[0].cue_ids),
        "layers": run.base.model.config.num_hidden_layers,
    }


def _free_answers(inputs: Sequence[str], predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    return [
        {
            "input": text,
            "label": p.label,
            "probability": p.probability,
            "variance": p.variance,
            "entropy": p.entropy,
            "mutual_information": p.mutual_information,
        }
        for text, p in zip(inputs, predictions, strict=True)
    ]


def _shown(
    task: TaskSetting, kept: dict[str, LabelledAnswers], field: str, free: Sequence[Prediction]
) -> dict[str, LabelledAnswers]:
    """The answers that the plane shows, those to single inputs last."""
    shown: dict[str, LabelledAnswers] = {
        name: (examples[: task.plane], answers[: task.plane])
        for name, (examples, answers) in kept.items()
    }
    if task.inputs:
        texts = [Example({field: text}, p.label) for text, p in zip(task.inputs, free, strict=True)]
        shown[INPUTS] = (texts, free)
    return shown
