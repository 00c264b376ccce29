"""Typed questions as LangChain asks them, against the application without a socket."""

import asyncio
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from langchain_core.decisions import Box, Choice, ClassifierResponse, Noul, NoulCriteria, Score
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run

from dalorra.client import AsyncClient, Client, InvalidInputError, Retries
from dalorra.client.langchain import DalorraDecisionModel, unaccepted
from tests.client_script import Script, answering

ASKED = {
    "refund": Noul(instructions="Refund?", criteria=NoulCriteria(true="money back")),
    "team": Choice(instructions="Team?", criteria={"billing": "invoices", "sales": None}),
    "anger": Score(instructions="How angry?", criteria=["calm", {"label": "furious"}]),
}
SENT = {
    "refund": {"type": "noul", "instructions": "Refund?", "criteria": {"true": "money back"}},
    "team": {
        "type": "choice", "instructions": "Team?",
        "criteria": {"billing": "invoices", "sales": None},
    },
    "anger": {
        "type": "score", "instructions": "How angry?", "criteria": ["calm", {"label": "furious"}],
    },
}  # fmt: skip
OWN = {
    "x_decision": "escalate", "x_reason": "because", "x_variance": 0.01, "x_standard_error": 0.003,
    "x_novelty": 0.5, "x_promise": None, "x_samples": 10, "x_adapter": "ask",
}  # fmt: skip


def body(**changes: Any) -> dict[str, Any]:
    own = OWN | changes
    return {
        "model": "ask",
        "answers": {
            "refund": {"type": "noul", "noul": 0.9, **own, "x_request_id": "r-0"},
            "team": {
                "type": "choice", "choice": "billing", "confidence": 0.6,
                "probabilities": {"billing": 0.8, "sales": 0.2}, **own, "x_request_id": "r-1",
            },
            "anger": {
                "type": "score", "score": 0.2, "legend": {"0": "calm", "1": {"label": "furious"}},
                "probabilities": {"0": 0.8, "1": 0.2}, "confidence": 0.6, **own,
                "x_request_id": "r-2",
            },
        },
        "usage": {"input_tokens": 9, "output_tokens": 0},
    }  # fmt: skip


def scripted(
    monkeypatch: pytest.MonkeyPatch, script: Script, **options: Any
) -> DalorraDecisionModel:
    """A model whose clients talk to the script."""
    transport = httpx.MockTransport(script)
    for kind in (Client, AsyncClient):
        monkeypatch.setattr(
            f"dalorra.client._connected.{kind.__name__}",
            lambda kind=kind, **named: kind(transport=transport, **named),
        )
    return DalorraDecisionModel(retries=Retries(attempts=1), **options)


@pytest.mark.parametrize("awaited", [False, True])
def test_questions_go_out_and_answers_come_back(monkeypatch: pytest.MonkeyPatch, awaited: bool):
    script = answering(body())
    model = scripted(monkeypatch, script, api_key="secret")
    request = {"state": "Refund me.", "questions": ASKED}
    response = asyncio.run(model.ainvoke(request)) if awaited else model.invoke(request)

    assert isinstance(response, ClassifierResponse)
    assert script.bodies == [{"model": "jev-latest", "state": "Refund me.", "questions": SENT}]
    assert script.requests[0].headers["authorization"] == "Bearer secret"
    assert (response.model, response.request_id) == ("ask", "r")
    assert response.usage is not None
    assert response.usage["total_tokens"] == 9
    assert response.nouls["refund"].noul == 0.9
    assert response.choices["team"].probabilities == {"billing": 0.8, "sales": 0.2}
    assert response.scores["anger"].legend == {0: "calm", 1: {"label": "furious"}}
    for answer in response.answers.values():
        assert (answer.decision, answer.variance) == ("escalate", 0.01)
    assert response.model_dump()["answers"]["refund"]["decision"] == "escalate"


def test_a_batch_is_one_request_each(monkeypatch: pytest.MonkeyPatch):
    script = answering(body())
    model = scripted(monkeypatch, script)
    model.batch([{"state": text, "questions": ASKED} for text in "abc"])
    assert sorted(one["state"] for one in script.bodies) == ["a", "b", "c"]


def test_traces_name_the_model(monkeypatch: pytest.MonkeyPatch):
    runs: list[Run] = []

    class Tracer(BaseTracer):
        def _persist_run(self, run: Run) -> None:
            runs.append(run)

    model = scripted(monkeypatch, answering(body()), model="ask")
    model.invoke({"state": "a", "questions": ASKED}, {"callbacks": [Tracer()]})
    [run] = runs
    assert run.run_type == "llm"
    metadata = run.extra["metadata"]
    assert (metadata["ls_provider"], metadata["ls_model_name"]) == ("dalorra", "ask")


def test_messages_anywhere_in_a_state_are_objects(monkeypatch: pytest.MonkeyPatch):
    script = answering(body())
    model = scripted(monkeypatch, script)
    call = {"name": "refund", "args": {"order": 7}, "id": "1"}
    state = {
        "n": 1,
        "so": [True, None],
        "said": [HumanMessage("Hi"), AIMessage("", tool_calls=[call])],
    }
    model.invoke({"state": state, "questions": ASKED})
    sent = script.bodies[0]["state"]
    assert (sent["n"], sent["so"]) == (1, [True, None])
    human, ai = sent["said"]
    assert human == {"role": "user", "content": "Hi"}
    assert ai["tool_calls"][0]["function"]["name"] == "refund"


def test_what_only_eyes_could_answer_is_refused(monkeypatch: pytest.MonkeyPatch):
    script = answering(body())
    model = scripted(monkeypatch, script)
    image = HumanMessage([{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}])
    for request, says in (
        (
            {"state": "a", "questions": {"where": Box(instructions="the dog")}},
            "'where' is about an image",
        ),
        ({"state": [image], "questions": ASKED}, "send text alone"),
        ({"state": {"a": object()}, "questions": ASKED}, "holds a object"),
    ):
        with pytest.raises(ValueError, match=says):
            model.invoke(request)
    assert script.requests == []


def test_errors_are_the_clients(monkeypatch: pytest.MonkeyPatch):
    detail = [{"loc": ["body", "questions"], "msg": "too many", "type": "too_long"}]
    model = scripted(monkeypatch, Script(httpx.Response(422, json={"detail": detail})))
    with pytest.raises(InvalidInputError, match="questions: too many"):
        model.invoke({"state": "a", "questions": ASKED})


@pytest.mark.parametrize(
    ("decision", "noul", "looks"),
    [
        ("accept", 0.9, False),
        ("accept", 0.4, True),
        ("escalate", 0.9, True),
        ("clarify", 0.9, True),
    ],
)
def test_a_person_looks_at_what_is_not_accepted(
    monkeypatch: pytest.MonkeyPatch, decision: str, noul: float, looks: bool
):
    answer = {"type": "noul", "noul": noul, **OWN, "x_decision": decision, "x_request_id": "r-0"}
    usage = {"input_tokens": 9, "output_tokens": 0}
    script = answering({"model": "ask", "answers": {"question": answer}, "usage": usage})
    model = scripted(monkeypatch, script)
    request = SimpleNamespace(tool_call={"name": "refund", "args": {"order": 7}, "id": "1"})

    assert unaccepted(model, ASKED["refund"])(request) is looks
    assert (
        unaccepted(model, ASKED["refund"], reads=lambda one: one.tool_call["id"])(request) is looks
    )

    states = [one["state"] for one in script.bodies]
    assert states == [{"tool": "refund", "arguments": {"order": 7}}, "1"]


def test_any_option_of_a_choice_will_do_if_it_is_accepted(monkeypatch: pytest.MonkeyPatch):
    answer = body(x_decision="accept")["answers"]["team"]
    usage = {"input_tokens": 9, "output_tokens": 0}
    script = answering({"model": "ask", "answers": {"question": answer}, "usage": usage})
    request = SimpleNamespace(tool_call={"name": "a", "args": {}, "id": "1"})
    assert unaccepted(scripted(monkeypatch, script), ASKED["team"])(request) is False


def test_a_call_that_is_asked_about_again_gets_the_same_answer(monkeypatch: pytest.MonkeyPatch):
    """A run that resumes relies on it, and meanwhile the server may have changed its mind."""
    answers = [body(x_decision=one)["answers"]["team"] for one in ("escalate", "accept", "accept")]
    usage = {"input_tokens": 9, "output_tokens": 0}
    bodies = [{"model": "ask", "answers": {"question": one}, "usage": usage} for one in answers]
    script = Script(*(httpx.Response(200, json=one) for one in bodies))
    guard = unaccepted(scripted(monkeypatch, script), ASKED["team"])

    def looks(name: str) -> bool:
        return guard(SimpleNamespace(tool_call={"name": "a", "args": {"b": 1}, "id": name}))

    assert [looks("1"), looks("1"), looks("2"), looks("1")] == [True, True, False, True]
    assert len(script.requests) == 2
