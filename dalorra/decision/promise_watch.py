"""Whether accepted answers keep what their policy promises, as the truth about them comes in.

The promise of a calibrated policy is about future answers; `decision.eprocess` says at any time how
strongly those whose true label is known speak against it. A policy promises a mean loss among all
accepted answers and one for each label with a target of its own: each gets its gambler, and their
mean wealth is the e-value of "all of it is kept".
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from dalorra.decision.eprocess import EProcess
from dalorra.decision.policy import Policy


def false_accept_cost(
    costs: Mapping[str, float], labels: Sequence[str], true: str, predicted: str
) -> float:
    """Cost of accepting `predicted` where `true` is right: 0 if it is, else 1 or as given.

    Args:
        costs: predicted label → cost whatever the true one; `true:predicted` → cost of that pair,
            which wins. A name that is a label is that label, colon or not.
        labels: all names.
        true: the right one.
        predicted: the accepted one.
    """
    if true == predicted:
        return 0.0
    pair = f"{true}:{predicted}"
    if pair in costs and pair not in labels:
        return costs[pair]
    return costs.get(predicted, 1.0)


@dataclass(frozen=True, slots=True)
class PromiseWatch:
    """The evidence against one policy's promise.

    Attributes:
        policy: what promises.
        labels: of its adapter; none where they come with the questions.
        processes: of the mean loss among all accepted; then one for each of the class targets, in
            their order.
        peak: the largest e-value so far. Evidence that was there once does not go away by more
            answers: the promise was that it would never get so far.
    """

    policy: Policy
    labels: tuple[str, ...]
    processes: tuple[EProcess, ...]
    peak: float = 1.0

    @classmethod
    def of(cls, policy: Policy, labels: Sequence[str]) -> Self | None:
        """Nothing has been seen yet; None for a policy that promises nothing that can be broken."""
        if policy.never_accepts or policy.target_error is None or policy.confidence is None:
            return None
        target = policy.target_error / _largest_cost(policy, labels)
        targets = [target, *policy.class_targets.values()]
        if not all(0.0 < target < 1.0 for target in targets):
            return None
        return cls(policy, tuple(labels), tuple(EProcess(target) for target in targets))

    @property
    def e_value(self) -> float:
        """Evidence against the promise: expected to stay at 1 or below while it is kept."""
        return sum(process.e_value for process in self.processes) / len(self.processes)

    def broken(self, alpha: float) -> bool:
        """Whether the evidence has ever been so strong that it is so with probability ≤ `alpha`."""
        return self.peak >= 1.0 / alpha

    def observe(self, predicted: str, true: str) -> Self:
        """The same after the true label of one more accepted answer."""
        largest = _largest_cost(self.policy, self.labels)
        cost = false_accept_cost(self.policy.costs, self.labels, true, predicted)
        whole, *classes = self.processes
        seen = [whole.observe(cost / largest)]
        for label, process in zip(self.policy.class_targets, classes, strict=True):
            seen.append(
                process.observe(float(true != predicted)) if label == predicted else process
            )
        watch = replace(self, processes=tuple(seen))
        return replace(watch, peak=max(self.peak, watch.e_value))

    def dump(self) -> str:
        """What `restored` needs to go on from here, as JSON."""
        processes = [{"count": p.count, "staked": p.staked} for p in self.processes]
        return json.dumps({"peak": self.peak, "processes": processes})

    def restored(self, dumped: str) -> Self:
        """The watch of the same policy at the time of `dump`.

        Raises:
            ValueError: the text is not from a watch of such a policy.
        """
        state = json.loads(dumped)
        try:
            processes = tuple(
                EProcess(process.target, int(saved["count"]), tuple(map(float, saved["staked"])))
                for process, saved in zip(self.processes, state["processes"], strict=True)
            )
            return replace(self, processes=processes, peak=float(state["peak"]))
        except (KeyError, TypeError) as error:
            raise ValueError("no state of a promise's watch") from error


def _largest_cost(policy: Policy, labels: Sequence[str]) -> float:
    """Of all pairs of labels; 1 where these come with the questions and cannot have costs."""
    costs = (
        false_accept_cost(policy.costs, labels, true, predicted)
        for true in labels
        for predicted in labels
    )
    return max(costs, default=1.0)
