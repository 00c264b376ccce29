"""Reviews are labelled by the model where it knows, and by you where it does not.

    make serve                                              # in one terminal
    python examples/langgraph_triage.py "Well, it was long"   # in another

`accept` takes the label, `escalate` stops and asks a human, `clarify` asks for more of the review
and predicts again, once. The graph is stored between the steps, so the human may take days.

Needs: pip install 'dalorra-service[langchain]'
"""

import argparse
from collections.abc import Callable
from typing import Any, Literal, TypedDict, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, RetryPolicy, interrupt

from dalorra.client import BusyError, Client
from dalorra.client.langgraph import predict_node, route_by_decision

MOST_QUESTIONS = 1


class Triage(TypedDict, total=False):
    """What the graph knows about one review."""

    review: str
    prediction: dict[str, Any]
    questions: int
    label: str
    decided_by: Literal["model", "human"]


def accept(state: Triage) -> Triage:
    """The model's label stands."""
    return {"label": state["prediction"]["label"], "decided_by": "model"}


def escalate(state: Triage) -> Triage:
    """A human decides. What is before `interrupt` runs again on resume, so nothing may happen."""
    label = interrupt({"kind": "label", "review": state["review"], **_why(state)})
    return {"label": label, "decided_by": "human"}


def clarify(state: Triage) -> Command[Literal["predict", "escalate"]]:
    """Asks for more of the review and predicts again; whoever was asked enough gets a human."""
    asked = state.get("questions", 0)
    if asked >= MOST_QUESTIONS:
        return Command(goto="escalate")
    more = interrupt({"kind": "more", "review": state["review"], **_why(state)})
    update: Triage = {"review": f"{state['review']} {more}", "questions": asked + 1}
    return Command(update=update, goto="predict")


def _why(state: Triage) -> dict[str, Any]:
    return {name: state["prediction"][name] for name in ("label", "probability", "reason")}


def build_graph(client: Client) -> CompiledStateGraph[Triage]:
    """The graph; give it another checkpointer to survive a restart."""
    graph = StateGraph(Triage)
    retry = RetryPolicy(max_attempts=3, retry_on=BusyError)
    graph.add_node("predict", predict_node(client, reads="review"), retry_policy=retry)
    graph.add_node("accept", accept)
    graph.add_node("escalate", escalate)
    graph.add_node("clarify", clarify)
    graph.add_edge(START, "predict")
    graph.add_conditional_edges("predict", route_by_decision())
    graph.add_edge("accept", END)
    graph.add_edge("escalate", END)
    return graph.compile(checkpointer=InMemorySaver())


def triage(
    graph: CompiledStateGraph[Triage], review: str, answer: Callable[[dict[str, Any]], str]
) -> Triage:
    """Runs one review to its end; `answer` is asked what the graph asks."""
    thread: RunnableConfig = {"configurable": {"thread_id": review}}
    state = graph.invoke({"review": review}, thread)
    while "__interrupt__" in state:
        [question] = state["__interrupt__"]
        state = graph.invoke(Command(resume=answer(question.value)), thread)
    return cast(Triage, state)


def ask_at_the_terminal(question: dict[str, Any]) -> str:
    """The human."""
    print(f"\n{question['review']}")
    print(f"  {question['label']} with {question['probability']:.2f}? {question['reason']}")
    return input("  Your label: " if question["kind"] == "label" else "  More of the review: ")


def main() -> None:
    parser = argparse.ArgumentParser(description="Label a review, together.")
    parser.add_argument("review")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--key", help="if the server wants one")
    given = parser.parse_args()
    with Client(given.url, api_key=given.key) as client:
        done = triage(build_graph(client), given.review, ask_at_the_terminal)
    print(f"{done['label']}, decided by the {done['decided_by']}")


if __name__ == "__main__":
    main()
