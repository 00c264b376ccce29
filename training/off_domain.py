"""Texts of many kinds, of which nearly all are foreign to any adapter.

An adapter's own kind may be among them: one for news finds the news familiar, and should. So what
is said of them is said by kind.
"""

from importlib.resources import files

import yaml

from dalorra.decision.policy import Decision
from dalorra.predictor import Predictor
from dalorra.prompts import Prompt
from dalorra.questions import Asked, Question
from training.answers import Evaluable


def off_domain_texts() -> dict[str, list[str]]:
    """Kind → texts, equally many of each."""
    content = (files("training") / "off_domain.yaml").read_text(encoding="utf-8")
    found: dict[str, list[str]] = yaml.safe_load(content)
    return found


def off_domain_prompts(
    predictor: Evaluable, question: Question | None = None
) -> dict[str, list[Prompt]]:
    """Kind → its texts as inputs of an adapter, each in all fields of its template.

    Args:
        predictor: an adapter on its base model.
        question: what one for questions is asked about each; by default whether it is so.
    """
    return {
        kind: [_says(predictor, text, question) for text in texts]
        for kind, texts in off_domain_texts().items()
    }


def _says(predictor: Evaluable, text: str, question: Question | None) -> Prompt:
    if question is not None:
        return predictor.encode(Asked(text, question))
    if isinstance(predictor, Predictor):
        return predictor.probe(text)
    return predictor.encode(dict.fromkeys(predictor.fields, text))


def accepted_by_kind(predictor: Evaluable, question: Question | None = None) -> dict[str, float]:
    """Kind → share of its texts that the predictor's policy accepts; see `off_domain_prompts`."""
    found = {}
    for kind, prompts in off_domain_prompts(predictor, question).items():
        verdicts = [predictor.policy.decide(answer) for answer in predictor.predict(prompts)]
        accepted = sum(verdict.decision is Decision.ACCEPT for verdict in verdicts)
        found[kind] = accepted / len(prompts)
    return found


def off_domain_in_words(accepted: dict[str, float]) -> str:
    """What is accepted of texts of other kinds, in one line, the kinds most accepted first."""
    mean = sum(accepted.values()) / len(accepted)
    most = sorted(accepted, key=lambda kind: -accepted[kind])
    named = ", ".join(f"{kind} {accepted[kind]:.0%}" for kind in most if accepted[kind])
    line = f"of texts of {len(accepted)} kinds, most of them not its own, {mean:.0%} are accepted"
    return f"{line}: {named}" if named else line
