"""`POST /feedback`: the truth about an earlier answer."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import Field

from dalorra.decision.policy import Decision
from service.api import problems
from service.api.callers import bearer_key, caller_of
from service.api.schemas import RequestBody, ResponseBody
from service.feedback import Ledger
from service.keys import matching
from service.settings import Settings


class FeedbackRequest(RequestBody):
    """Which answer, and what would have been right."""

    request_id: str = Field(
        pattern=r"^[A-Za-z0-9._-]{1,160}$",
        description="That of the answer.",
        examples=["5f2b6c1e0d9a4b7f8c3e2a1d0b9c8f7e"],
    )
    label: str = Field(description="The true label.", examples=["negative"])


class FeedbackResponse(ResponseBody):
    """The judgement that is kept from now on."""

    request_id: str = Field(description="That of the answer.")
    label: str = Field(description="The true label.")
    predicted: str = Field(description="The label that was answered.")
    decision: Decision = Field(description="What its client was told to do with it.")
    correct: bool = Field(description="Whether the answer was right.")


def feedback_routes(settings: Settings, ledger: Ledger) -> APIRouter:
    """Where feedback comes in: from whoever asked, or from an administrator."""
    router = APIRouter(tags=["feedback"])
    administrators = settings.admin_key_digests()

    @router.post(
        "/feedback",
        responses=problems.documented(
            problems.MALFORMED,
            problems.UNAUTHORIZED,
            problems.FEEDBACK_OFF,
            problems.UNKNOWN_ANSWER,
            problems.ALREADY_JUDGED,
            problems.OTHER_ADAPTER,
            problems.BODY_TOO_LARGE,
            problems.INVALID,
            problems.UNKNOWN_LABEL,
            problems.QUEUE_FULL,
            problems.RATE_LIMITED,
            problems.INTERNAL,
            problems.FEEDBACK_STORE,
        ),
    )
    async def feedback(body: FeedbackRequest, request: Request) -> FeedbackResponse:
        """Keeps the truth about an earlier answer to the same key.

        The first judgement stays. Sent again it is answered as before, and counts once.
        Keys of `admin_keys` may judge the answers of all keys.
        """
        key = bearer_key(request.scope)
        anyones = key is not None and matching(key, administrators) is not None
        owner = caller_of(request).owner
        taken = await ledger.judge(body.request_id, body.label, owner, anyones=anyones)
        return FeedbackResponse(
            request_id=taken.request_id,
            label=taken.label,
            predicted=taken.predicted,
            decision=Decision(taken.decision),
            correct=taken.correct,
        )

    return router
