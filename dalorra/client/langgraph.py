"""Parts of a LangGraph graph: a node that predicts, and the edge that routes on its decision.

```python
graph.add_node("predict", predict_node(client, reads="review"))
graph.add_conditional_edges(
    "predict",
    route_by_decision(),
    {"accept": "act", "escalate": "ask_human", "clarify": "ask_for_more"},
)
```

Needs the `langchain` extra; no torch, no server code.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, overload

from dalorra.client import AsyncClient, Client, Decision, Input, Prediction

State = Any  # a mapping with the graph's own keys: a TypedDict, of which there is no common type
Update = dict[str, dict[str, Any]]


class PredictNode(Protocol):
    """A node, as `StateGraph.add_node` takes it."""

    def __call__(self, state: State) -> Update: ...


class AsyncPredictNode(Protocol):
    """A node of a graph that is run with `ainvoke`."""

    def __call__(self, state: State) -> Awaitable[Update]: ...


@overload
def predict_node(
    client: Client,
    *,
    reads: str | Callable[[State], Input],
    writes: str = ...,
    adapter: str | None = ...,
) -> PredictNode: ...
@overload
def predict_node(
    client: AsyncClient,
    *,
    reads: str | Callable[[State], Input],
    writes: str = ...,
    adapter: str | None = ...,
) -> AsyncPredictNode: ...
def predict_node(
    client: Client | AsyncClient,
    *,
    reads: str | Callable[[State], Input],
    writes: str = "prediction",
    adapter: str | None = None,
) -> PredictNode | AsyncPredictNode:
    """A node that asks the server and puts the prediction, as a dict, into the state.

    Args:
        client: an `AsyncClient` makes a node for graphs that are run with `ainvoke`.
        reads: key of the state that holds the input, or a function of the state that makes it.
        writes: key of the state for the prediction.
        adapter: which one answers; the server's default if none is named.

    The node raises a `ClientError` when it gets no prediction: give it a `RetryPolicy`, or let
    the graph fail, but do not route on an answer that was not given.
    """

    def read(state: State) -> Input:
        if callable(reads):
            return reads(state)
        value: Input = state[reads]
        return value

    def update(prediction: Prediction) -> Update:
        return {writes: prediction.model_dump(mode="json", exclude_unset=True)}

    if isinstance(client, Client):

        def predict(state: State) -> Update:
            return update(client.predict(read(state), adapter=adapter))

        return predict

    async def predict_async(state: State) -> Update:
        return update(await client.predict(read(state), adapter=adapter))

    return predict_async


def route_by_decision(*, reads: str = "prediction") -> Callable[[State], Decision]:
    """A path for `add_conditional_edges`: `accept`, `escalate` or `clarify`.

    Args:
        reads: key of the state that holds the prediction.
    """

    def route(state: State) -> Decision:
        decision: Decision = state[reads]["decision"]
        return decision

    return route
