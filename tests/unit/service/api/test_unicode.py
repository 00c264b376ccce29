"""Half of a surrogate pair, which JSON can hold, in every text of every body that is taken."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving import JSON, serving

HALF = "\ud800"
BODIES: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/predict", {"input": "a", "adapter": "fake-adapter"}),
    ("POST", "/predict", {"input": {"sentence": "a"}}),
    ("POST", "/predict/batch", {"inputs": ["a", {"sentence": "b"}], "adapter": "fake-adapter"}),
    ("POST", "/feedback", {"request_id": "a", "label": "positive"}),
    ("PUT", "/adapters/a", {"path": "a"}),
    (
        "POST",
        "/v2/models/fake-adapter/infer",
        {
            "id": "1",
            "inputs": [
                {"name": "sentence", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]},
                {"name": "sentence", "datatype": "BYTES", "shape": [1], "data": [["a"]]},
            ],
            "outputs": [{"name": "label"}],
        },
    ),
]


def with_half(value: Any) -> Iterator[Any]:
    """The value with each of its texts, one at a time, and each of its free keys spoilt."""
    if isinstance(value, str):
        yield value + HALF
    elif isinstance(value, list | dict):
        for key in range(len(value)) if isinstance(value, list) else value:
            for spoilt in with_half(value[key]):
                changed = copy.copy(value)
                changed[key] = spoilt
                yield changed
        if isinstance(value, dict) and "sentence" in value:
            yield {**value, HALF: "a"}


QUESTIONS: list[tuple[str, dict[str, Any]]] = [
    (
        "/v1/systemone",
        {
            "model": "fake-adapter",
            "state": {"a": ["b"]},
            "questions": {
                "q": {"type": "choice", "instructions": "which?", "criteria": {"x": "y", "z": None}}
            },
        },
    ),
    (
        "/v1/decisions",
        {
            "model": "fake-adapter",
            "input": [{"role": "user", "content": "a"}],
            "questions": [{"type": "predicate", "name": "n", "instructions": "is it?"}],
        },
    ),
]


@pytest.mark.parametrize(("path", "body"), QUESTIONS)
async def test_the_protocols_of_others_refuse_it_in_their_form(path: str, body: dict[str, Any]):
    async with serving() as server:
        for spoilt in with_half(body):
            content = json.dumps(spoilt).encode()
            response = await server.client.post(path, content=content, headers=JSON)
            assert response.status_code in (400, 404, 422), (spoilt, response.text)
            response.text.encode()
        assert server.predictor.batches == []


@pytest.mark.parametrize(("method", "path", "body"), BODIES)
async def test_it_is_refused_before_the_forward(method: str, path: str, body: dict[str, Any]):
    settings = {"api_keys": "k", "admin_keys": "k"}
    headers = {**JSON, "Authorization": "Bearer k"}
    async with serving(**settings) as server:
        for spoilt in with_half(body):
            content = json.dumps(spoilt).encode()
            response = await server.client.request(method, path, content=content, headers=headers)
            assert (response.status_code, response.json()["error_type"]) == (
                422,
                "invalid_input",
            ), spoilt
            assert "surrogate" in response.json()["error"], spoilt
        assert server.predictor.batches == []


async def test_every_body_that_is_taken_is_tried():
    async with serving() as server:
        paths = (await server.client.get("/openapi.json")).json()["paths"]
    taken = {
        (method.upper(), path.replace("{name}", "a").replace("{model}", "fake-adapter"))
        for path, operations in paths.items()
        for method, operation in operations.items()
        if "requestBody" in operation
    }
    tried = {(method, path) for method, path, _ in BODIES}
    assert taken == tried | {("POST", path) for path, _ in QUESTIONS}


async def test_a_whole_pair_is_a_letter():
    async with serving() as server:
        content = rb'{"input": "\ud83d\ude00"}'
        response = await server.client.post("/predict", content=content, headers=JSON)
        assert response.status_code == 200
        assert server.predictor.encoded == ["\U0001f600"]


@pytest.mark.parametrize("levels", [100, 900])
async def test_deep_nests_are_refused_like_shallow_ones(levels: int):
    nest = "[" * levels + '"a"' + "]" * levels
    content = (
        f'{{"inputs": [{{"name": "sentence", "datatype": "BYTES", "shape": [1], "data": {nest}}}]}}'
    )
    async with serving() as server:
        response = await server.client.post(
            "/v2/models/fake-adapter/infer", content=content, headers=JSON
        )
    assert response.status_code in (400, 422)
