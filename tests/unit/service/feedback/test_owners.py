"""Answers belong to the key that asked: no other one judges or overwrites them."""

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from dalorra.client.tool import ASK_NAME
from tests.fakes import FakeBase, FakePredictor, FakeQuestions
from tests.serving import RunningServer, over_mcp, serving

ANN, BOB, ADMIN = "the-key-of-ann-is-long", "the-key-of-bob-is-long", "the-key-of-the-administrator"
QUESTIONS = {"q": {"type": "noul", "instructions": "Is it?"}}


def as_key(key: str, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", **more}


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {
        "feedback_store": tmp_path / "f.sqlite",
        "api_keys": f"{ANN},{BOB}",
        "admin_keys": ADMIN,
    }


async def judge(
    server: RunningServer, request_id: str, label: str, key: str | None
) -> httpx.Response:
    body = {"request_id": request_id, "label": label}
    headers = as_key(key) if key else {}
    return await server.client.post("/feedback", json=body, headers=headers)


async def by_predict(server: RunningServer) -> tuple[str, str]:
    response = await server.predict("a", headers=as_key(ANN))
    return response.json()["request_id"], "positive"


async def by_batch(server: RunningServer) -> tuple[str, str]:
    body = {"inputs": ["a", "b"]}
    response = await server.client.post("/predict/batch", json=body, headers=as_key(ANN))
    return response.json()["predictions"][1]["request_id"], "positive"


async def by_system_one(server: RunningServer) -> tuple[str, str]:
    body = {"model": "questions", "state": "s", "questions": QUESTIONS}
    response = await server.client.post("/v1/systemone", json=body, headers=as_key(ANN))
    return response.json()["answers"]["q"]["x_request_id"], "true"


async def by_decisions(server: RunningServer) -> tuple[str, str]:
    question = {"type": "predicate", "instructions": "Is it?"}
    body = {"model": "questions", "input": "s", "questions": [question]}
    response = await server.client.post("/v1/decisions", json=body, headers=as_key(ANN))
    return response.json()["answers"][0]["x_request_id"], "true"


async def by_open_inference(server: RunningServer) -> tuple[str, str]:
    tensor = {"name": "sentence", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    response = await server.client.post(
        "/v2/models/labels/infer", json={"inputs": [tensor]}, headers=as_key(ANN)
    )
    return f"{response.headers['x-request-id']}-0", "positive"


async def by_tool(server: RunningServer) -> tuple[str, str]:
    async with over_mcp(server, key=ANN) as client:
        result = await client.call_tool("predict_with_uncertainty", {"sentence": "a"})
    return str((result.structured_content or {})["request_id"]), "positive"


async def by_question_tool(server: RunningServer) -> tuple[str, str]:
    async with over_mcp(server, key=ANN) as client:
        arguments = {"model": "questions", "state": "s", "questions": QUESTIONS}
        result = await client.call_tool(ASK_NAME, arguments)
    return str((result.structured_content or {})["answers"]["q"]["x_request_id"]), "true"


DOORS = (
    by_predict,
    by_batch,
    by_system_one,
    by_decisions,
    by_open_inference,
    by_tool,
    by_question_tool,
)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
async def test_whichever_door_it_came_through_only_its_owner_judges_an_answer(
    settings: dict[str, Any], door: Callable[[RunningServer], Awaitable[tuple[str, str]]]
):
    base = FakeBase(labels=FakePredictor(), questions=FakeQuestions())
    adapters = {"labels": "/a/labels", "questions": "/a/questions"}
    async with serving(base=base, adapters=adapters, **settings) as server:
        request_id, label = await door(server)
        foreign = await judge(server, request_id, label, BOB)
        own = await judge(server, request_id, label, ANN)
        late = await judge(server, request_id, label, BOB)
    for response in (foreign, late):
        assert (response.status_code, response.json()["error_type"]) == (404, "unknown_answer")
        assert "to another key" in response.json()["error"]
    assert own.status_code == 200, own.text


async def test_an_administrator_judges_anyones_answer(settings: dict[str, Any]):
    async with serving(**settings) as server:
        body = (await server.predict("a", headers=as_key(ANN))).json()
        taken = await judge(server, body["request_id"], "positive", ADMIN)
        again = await judge(server, body["request_id"], "negative", ANN)
    assert taken.status_code == 200
    assert (again.status_code, again.json()["error_type"]) == (409, "already_judged")


async def test_a_replayed_id_overwrites_nothing_of_another_key(settings: dict[str, Any]):
    same = {"X-Request-Id": "the-same"}
    async with serving(**settings) as server:
        await server.predict("ann's", headers=as_key(ANN, **same))
        for _ in range(2):
            replayed = await server.predict("bob's", headers=as_key(BOB, **same))
        unclear = await judge(server, "the-same", "negative", ADMIN)
        of_bob = await judge(server, "the-same", "negative", BOB)
        of_ann = await judge(server, "the-same", "positive", ANN)
    assert (replayed.status_code, replayed.json()["request_id"]) == (200, "the-same")
    assert unclear.status_code == 404, "which of the two is meant, nobody can tell"
    assert (of_bob.status_code, of_bob.json()["label"]) == (200, "negative")
    assert (of_ann.status_code, of_ann.json()["label"]) == (200, "positive")
    with closing(sqlite3.connect(settings["feedback_store"])) as database:
        found = database.execute(
            "SELECT request_id, count(DISTINCT owner), count(true_label) FROM answers GROUP BY 1"
        ).fetchall()
        text = str(database.execute("SELECT * FROM answers").fetchall())
    assert found == [("the-same", 2, 2)]
    assert ANN not in text


async def test_without_keys_all_answers_have_one_owner(tmp_path: Path):
    async with serving(feedback_store=tmp_path / "f.sqlite", admin_keys=ADMIN) as server:
        ids = [
            (await server.predict("a", headers=headers)).json()["request_id"]
            for headers in ({}, as_key(ANN), as_key(ADMIN))
        ]
        taken = [
            await judge(server, request_id, "positive", key)
            for request_id, key in zip(ids, (BOB, ADMIN, None), strict=True)
        ]
    assert [response.status_code for response in taken] == [200] * 3


async def test_answers_of_keys_are_an_administrators_once_there_are_no_keys(
    settings: dict[str, Any],
):
    async with serving(**settings) as server:
        body = (await server.predict("a", headers=as_key(ANN))).json()
    async with serving(feedback_store=settings["feedback_store"], admin_keys=ADMIN) as server:
        refused = await judge(server, body["request_id"], "positive", ANN)
        taken = await judge(server, body["request_id"], "positive", ADMIN)
    assert (refused.status_code, taken.status_code) == (404, 200)
