"""The thread that writes: takes what waits in the inbox, all of it in one transaction."""

from __future__ import annotations

import json
import queue
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import structlog

from dalorra.decision.policy import Policy
from dalorra.decision.promise_watch import PromiseWatch
from service.errors import (
    LONGEST_ECHO,
    AlreadyJudgedError,
    FeedbackStoreError,
    OtherAdapterError,
    ServiceError,
    UnknownAnswerError,
    UnknownLabelError,
)
from service.feedback.clock import SteadyClock
from service.feedback.live import measure
from service.feedback.messages import (
    CatchUp,
    GoneAdapter,
    Judgement,
    Message,
    NewAnswers,
    NewPolicy,
    ServedPolicy,
)
from service.feedback.records import Feedback
from service.feedback.tables import AnswerTables

_TICK_SECONDS = 1.0  # between looks at what other processes wrote, and at what has expired
_PRUNE_SECONDS = 60.0
_TOGETHER = 1_000  # messages of one transaction
_CHEAP_SECONDS = 0.005  # adding up that takes no longer is done after every transaction
_IDLE = 20  # after adding up that takes longer, the next waits so many times as long

_log = structlog.get_logger("dalorra.feedback")


class Clerk:
    """Runs on a thread of its own until it finds None in the inbox.

    Args:
        store: used by this thread alone.
        inbox: what is to be done, in order.
        clock: by which answers are too old.
        retention_seconds: answers are deleted after it.
        max_answers: most that are kept.
        alpha: see `service.feedback.live.measure`.
    """

    def __init__(
        self,
        store: AnswerTables,
        inbox: queue.SimpleQueue[Message | None],
        clock: SteadyClock,
        *,
        retention_seconds: float,
        max_answers: int,
        alpha: float,
    ) -> None:
        self._store = store
        self._inbox = inbox
        self._clock = clock
        self._retention_seconds = retention_seconds
        self._max_answers = max_answers
        self._alpha = alpha
        self._policies: dict[str, ServedPolicy] = {}  # by name of the adapter
        self._stale: set[str] = set()  # names of adapters whose `live` is behind the store
        self._refresh_after = 0.0
        self._prune_after = 0.0
        self._added = 0
        self._seen_of_others = store.changes_of_others
        self.judged: Counter[tuple[str, str, bool]] = Counter()  # adapter, decision, correct
        self.lost = 0
        self.done = 0  # answers that were written or lost

    def run(self) -> None:
        """Works until it is told to stop, then closes the store."""
        working = True
        while working:
            messages, working = self._take()
            outcomes: list[_Outcome] = []
            try:
                outcomes = self._write(messages)
            except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
                lost = self._give_up(messages)
                _log.error("feedback_not_written", lost=lost, error=str(error), exc_info=error)
            self.done += sum(len(one.answers) for one in messages if isinstance(one, NewAnswers))
            self._catch_up([one.done for one in messages if isinstance(one, CatchUp)])
            self._tell(outcomes)
            try:
                if working:
                    self._tidy()
            except Exception as error:  # noqa: BLE001 - it is tried again
                _log.error("feedback_not_tidied", error=str(error), exc_info=error)
        self._store.close()

    def _take(self) -> tuple[list[Message], bool]:
        """What is in the inbox, and whether there will be more."""
        messages: list[Message] = []
        pause = _TICK_SECONDS
        if self._stale:
            pause = min(max(self._refresh_after - time.monotonic(), 0.001), pause)
        try:
            message = self._inbox.get(timeout=pause)
            while message is not None:
                messages.append(message)
                if len(messages) >= _TOGETHER:
                    return messages, True
                message = self._inbox.get_nowait()
        except queue.Empty:
            return messages, True
        return messages, False

    def _write(self, messages: Sequence[Message]) -> list[_Outcome]:
        """Writes all of it or nothing; what came of the judgements among it."""
        outcomes: list[_Outcome] = []
        if not messages:
            return outcomes
        watches = _Watches(self._store)
        with self._store.transaction():
            for message in messages:
                match message:
                    case NewAnswers(served, answers):
                        self._store.add(self._number(served), answers)
                        self._added += len(answers)
                    case NewPolicy(served):
                        self._policies[served.adapter] = served
                        self._stale.add(served.adapter)
                    case GoneAdapter(adapter):
                        self._policies.pop(adapter, None)
                        self._stale.discard(adapter)
                    case Judgement():
                        outcomes.append((message, self._judge(message, watches)))
                    case CatchUp():
                        pass  # nothing to write: see `_catch_up`
            watches.save()
        return outcomes

    def _tell(self, outcomes: Sequence[_Outcome]) -> None:
        """Answers whoever judged."""
        for judgement, outcome in outcomes:
            if isinstance(outcome, ServiceError):
                _settle(judgement.done, outcome)
                continue
            taken = outcome.feedback
            if outcome.new:
                self.judged[taken.adapter, taken.decision, taken.correct] += 1
            _settle(judgement.done, taken)

    def _catch_up(self, waiting: Sequence[Future[None]]) -> None:
        """Adds up what has changed, and tells whoever waits for it."""
        try:
            self._refresh(at_once=bool(waiting))
        except Exception as error:  # noqa: BLE001 - it is tried again
            _log.error("feedback_not_added_up", error=str(error), exc_info=error)
            for done in waiting:
                _settle(done, FeedbackStoreError("the feedback store cannot be read"))
        else:
            for done in waiting:
                _settle(done, None)

    def _number(self, served: ServedPolicy) -> int:
        if served.number is None:
            served.number = self._store.source_id(served.source)
        return served.number

    def _judge(self, judgement: Judgement, watches: _Watches) -> _Judged | ServiceError:
        """Writes the truth about an answer, or says why it cannot.

        What was said before may be said again, by a client that was not told that it was heard.
        """
        owner = self._owner(judgement)
        kept = None if owner is None else self._store.find(judgement.request_id, owner)
        if owner is None or kept is None:
            return UnknownAnswerError(
                f"no answer is kept under request_id {judgement.request_id!r}: it was given by "
                "another server, to another key, longer ago than answers are kept, or never"
            )
        source, _ = self._store.source(kept.source)
        digest = source.adapter_digest
        alike = [one for one in self._policies.values() if one.source.adapter_digest == digest]
        if not alike:
            return OtherAdapterError(
                f"the answer {judgement.request_id!r} is of adapter {digest[:12]}…, which is not "
                "served any more"
            )
        served = alike[0]
        known: dict[str, str] = (
            json.loads(kept.called) if kept.called else {label: label for label in served.labels}
        )
        if judgement.label not in known:
            return UnknownLabelError(
                f"label {judgement.label[:LONGEST_ECHO]!r} is unknown to adapter "
                f"{served.adapter!r}: send one of {', '.join(known)}"
            )
        label = known[judgement.label]
        taken = Feedback(judgement.request_id, label, kept.label, kept.decision, served.adapter)
        if kept.true_label == label:
            return _Judged(taken, new=False)
        if kept.true_label is not None:
            return AlreadyJudgedError(
                f"the answer {judgement.request_id!r} was judged before, as {kept.true_label!r}: "
                "the first judgement stays"
            )
        self._store.judge(judgement.request_id, owner, label, self._clock.now())
        if kept.accepted:
            watches.observe(kept.source, served.labels, kept.label, label)
        self._stale.update(one.adapter for one in alike)
        return _Judged(taken, new=True)

    def _owner(self, judgement: Judgement) -> str | None:
        """Whose answer is judged; None where nobody has it, or several whom nothing tells apart."""
        owners = self._store.owners(judgement.request_id)
        if judgement.owner in owners:
            return judgement.owner
        return owners[0] if judgement.anyones and len(owners) == 1 else None

    def _refresh(self, *, at_once: bool = False) -> None:
        """Adds up what has changed, but spends no more than a small share of the time on it."""
        started = time.monotonic()
        if not self._stale or (started < self._refresh_after and not at_once):
            return
        self._refresh_after = started + _TICK_SECONDS  # unless it is done sooner
        watches = _Watches(self._store)
        for adapter in tuple(self._stale):
            served = self._policies[adapter]
            number = self._number(served)
            watch = watches.of(number, served.labels)
            served.live = measure(self._store.groups(number), watch, self._alpha)
            self._stale.discard(adapter)
        ended = time.monotonic()
        seconds = ended - started
        self._refresh_after = ended + (_IDLE * seconds if seconds > _CHEAP_SECONDS else 0.0)

    def _tidy(self) -> None:
        """Deletes what is too old or too much, and looks at what other processes wrote."""
        now = time.monotonic()
        if now >= self._prune_after or self._added > self._max_answers / 100:
            with self._store.transaction():
                time_of_day = self._clock.for_deleting()
                oldest = time_of_day - self._retention_seconds
                removed = self._store.prune(oldest, self._max_answers)
                self._store.set_time(time_of_day)
            self._added, self._prune_after = 0, now + _PRUNE_SECONDS
            if removed:
                self._stale.update(self._policies)
        if (seen := self._store.changes_of_others) != self._seen_of_others:
            self._seen_of_others = seen
            self._stale.update(self._policies)

    def _give_up(self, messages: Sequence[Message]) -> int:
        """Tells whoever waits, and says how many answers are lost."""
        before = self.lost
        for served in self._policies.values():
            served.number = None  # the transaction that made it may have been rolled back
        for message in messages:
            if isinstance(message, NewAnswers):
                message.served.number = None
                self.lost += len(message.answers)
            elif isinstance(message, Judgement):
                _settle(message.done, FeedbackStoreError("the feedback store cannot be written"))
        return self.lost - before


@dataclass(frozen=True, slots=True)
class _Judged:
    """A judgement that is kept, and whether it came in just now."""

    feedback: Feedback
    new: bool


_Outcome = tuple[Judgement, _Judged | ServiceError]


class _Watches:
    """The watches of the promises that one transaction changes."""

    def __init__(self, store: AnswerTables) -> None:
        self._store = store
        self._loaded: dict[int, PromiseWatch | None] = {}
        self._changed: set[int] = set()

    def of(self, number: int, labels: tuple[str, ...]) -> PromiseWatch | None:
        """The watch of a source's promise, as far as it has come; None without a promise."""
        if number not in self._loaded:
            source, state = self._store.source(number)
            watch = PromiseWatch.of(Policy.model_validate_json(source.policy), labels)
            self._loaded[number] = watch.restored(state) if watch and state else watch
        return self._loaded[number]

    def observe(self, number: int, labels: tuple[str, ...], predicted: str, true: str) -> None:
        """Lets it see one more accepted answer."""
        if (watch := self.of(number, labels)) is not None:
            self._loaded[number] = watch.observe(predicted, true)
            self._changed.add(number)

    def save(self) -> None:
        """Writes what has changed."""
        for number in self._changed:
            if (watch := self._loaded[number]) is not None:
                self._store.set_watch(number, watch.dump())


def _settle(done: Future[Any], outcome: object) -> None:
    """Hands an outcome to its caller, unless the caller has left."""
    if not done.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Exception):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)
