"""A digest over all that a policy promises: whether its file is what calibration wrote.

Whoever picks thresholds by calibration writes the digest with them; whoever reads them compares.
So a file that was edited, cut or mixed up by accident or on the quiet is told from a calibrated
one. It is a checksum and no signature: who wants to can compute it anew.
"""

import hashlib
import json

from dalorra.decision.policy import Policy
from dalorra.questions import Question


def digest_of(policy: Policy) -> str:
    """sha256 over every field but the digest itself, hexadecimal.

    Fields that have their default are left out, so that one more field in a later version does not
    change the digests of earlier policies.
    """
    promised = policy.model_dump(mode="json", exclude={"digest"}, exclude_defaults=True)
    text = json.dumps(promised, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def with_digest(policy: Policy, question: Question | None = None) -> Policy:
    """The policy as calibration writes it.

    Args:
        policy: has been calibrated.
        question: that it holds for alone; None: for whatever the adapter is asked.
    """
    about = policy.model_copy(update={"question": question.digest if question else None})
    return about.model_copy(update={"digest": digest_of(about)})


def checked(policy: Policy, *, hand_made: bool) -> Policy:
    """A policy that was read, if it is as it was written; else one that never accepts.

    Args:
        policy: as its file has it.
        hand_made: whether thresholds are kept that have no digest, or not theirs. They promise
            nothing, and every reason says so. What accepts nothing needs no digest.
    """
    unchanged = policy.digest == digest_of(policy)
    if unchanged or (policy.digest is None and policy.never_accepts):
        return policy
    if hand_made:
        nothing = {"digest": None, "confidence": None, "upper_bound": None, "path": ()}
        return policy.model_copy(update=nothing)
    why = (
        "its policy has no digest, so it was made by hand or by an earlier version"
        if policy.digest is None
        else "its policy is not the one that was calibrated: its digest is of another"
    )
    return Policy.never(
        policy.adapter_digest,
        f"{why}; calibrate the adapter, or allow hand_made_policies, which promise nothing",
    )
