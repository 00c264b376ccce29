"""What an adapter's policies are, and what changes about them when another takes its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from dalorra.decision.policy import Policy
    from service.engine import Predictor


class Change(NamedTuple):
    """What a field of a policy was and is, as JSON; None also where there is no policy."""

    before: Any
    after: Any


class PolicyChanges(NamedTuple):
    """What differs between the policies of two adapters.

    Attributes:
        policy: by field.
        question_policies: by `Question.digest`, then by field.
    """

    policy: Mapping[str, Change]
    question_policies: Mapping[str, Mapping[str, Change]]

    @classmethod
    def between(cls, before: Predictor, after: Predictor) -> PolicyChanges:
        """From one adapter to the next."""
        old, new = before.question_policies, after.question_policies
        of_questions = {
            question: _changes(old.get(question), new.get(question))
            for question in dict.fromkeys((*old, *new))
        }
        changed = {question: fields for question, fields in of_questions.items() if fields}
        return cls(_changes(before.policy, after.policy), changed)


def hand_made_policies(predictor: Predictor) -> int:
    """How many of an adapter's policies accept answers and promise nothing by calibration."""
    policies = (predictor.policy, *predictor.question_policies.values())
    return sum(policy.hand_made for policy in policies)


def _changes(before: Policy | None, after: Policy | None) -> dict[str, Change]:
    old, new = (one.model_dump(mode="json") if one else {} for one in (before, after))
    return {
        name: Change(old.get(name), new.get(name))
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name)
    }
