"""The Open Inference Protocol: what a KServe-style caller sends and reads."""

from typing import Any

import pytest

from tests.fakes import FakePredictor, expected_prediction
from tests.serving import RunningServer, serving

INFER = "/v2/models/fake-adapter/infer"


def tensor(*texts: Any, name: str = "sentence", shape: list[int] | None = None) -> dict[str, Any]:
    shape = [len(texts)] if shape is None else shape
    return {"name": name, "datatype": "BYTES", "shape": shape, "data": list(texts)}


async def test_texts_are_answered_in_order():
    async with serving() as server:
        body = {"id": "42", "inputs": [tensor("one", "two")]}
        response = await server.client.post(INFER, json=body)
        expected = [expected_prediction(server.predictor.encode(text)) for text in ("one", "two")]
        verdicts = [server.predictor.policy.decide(one) for one in expected]
        metrics = await server.metrics()

    assert response.status_code == 200, response.text
    answer = response.json()
    assert (answer["model_name"], answer["model_version"]) == ("fake-adapter", "0123abcd")
    assert answer["id"] == "42"
    assert {one["name"]: (one["datatype"], one["shape"]) for one in answer["outputs"]} == {
        "label": ("BYTES", [2]),
        "probability": ("FP64", [2]),
        "variance": ("FP64", [2]),
        "decision": ("BYTES", [2]),
    }
    data = {one["name"]: one["data"] for one in answer["outputs"]}
    assert data["label"] == ["positive", "positive"]
    assert data["probability"] == [one.probability for one in expected]
    assert data["variance"] == [one.variance for one in expected]
    assert data["decision"] == [verdict.decision for verdict in verdicts]
    assert "server-timing" in response.headers
    assert metrics['dalorra_requests_total{outcome="ok"}'] == 1


async def test_a_template_with_several_fields_takes_a_tensor_for_each():
    async with serving(FakePredictor(["claim", "evidence"])) as server:
        claims, evidence = tensor("a", "c", name="claim"), tensor("b", "d", name="evidence")
        response = await server.client.post(INFER, json={"inputs": [evidence, claims]})
        expected = expected_prediction(server.predictor.encode({"claim": "c", "evidence": "d"}))

    [probability] = [o for o in response.json()["outputs"] if o["name"] == "probability"]
    assert probability["data"][1] == expected.probability


@pytest.mark.parametrize("shape", [[2], [2, 1]])
async def test_data_may_be_nested_and_outputs_chosen(shape: list[int]):
    nested = {**tensor("a", "b"), "shape": shape, "data": [["a"], ["b"]]}
    wanted = [{"name": "decision"}, {"name": "label", "parameters": {"binary_data": False}}]
    async with serving() as server:
        response = await server.client.post(INFER, json={"inputs": [nested], "outputs": wanted})
    outputs = response.json()["outputs"]
    assert [output["name"] for output in outputs] == ["decision", "label"]
    assert outputs[1]["shape"] == [2]
    assert "id" not in response.json()


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ([], "at least 1 item"),
        ([tensor("a", name="text")], "one tensor for each of: sentence"),
        ([tensor("a"), tensor("b", name="text")], "one tensor for each of: sentence"),
        ([tensor("a"), tensor("b")], "one tensor for each of: sentence"),
        ([tensor("a", shape=[2])], "shape [2] has 1 elements"),
        ([tensor("a", "b", shape=[1, 2])], "[n] or [n, 1]"),
        ([tensor("a", shape=[])], "[n] or [n, 1]"),
        ([tensor("a", shape=[1, 1, 1])], "[n] or [n, 1]"),
        ([tensor(1)], "must be strings"),
        ([tensor(["a", 1], shape=[2])], "must be strings"),
        ([{**tensor(), "parameters": {"binary_data_size": 7}}], "as JSON"),
        ([{**tensor("a"), "datatype": "FP32"}], "BYTES"),
        ([tensor("")], "empty"),
    ],
)
async def test_what_does_not_fit_is_a_sentence(inputs: list[Any], sentence: str):
    async with serving() as server:
        response = await server.client.post(INFER, json={"inputs": inputs})
        assert (await server.predict("a")).status_code == 200
    assert (response.status_code, response.json()["error_type"]) == (422, "invalid_input")
    assert sentence in response.json()["error"]


async def test_limits_and_names():
    async with serving(max_batch_inputs=2) as server:
        many = await server.client.post(INFER, json={"inputs": [tensor("a", "b", "c")]})
        other = await server.client.post("/v2/models/x/infer", json={"inputs": [tensor("a")]})
        output = {"inputs": [tensor("a")], "outputs": [{"name": "logits"}]}
        unknown = await server.client.post(INFER, json=output)
        uneven = [tensor("a", name="claim"), tensor("b", "c", name="evidence")]
    async with serving(FakePredictor(["claim", "evidence"])) as server:
        unequal = await server.client.post(INFER, json={"inputs": uneven})
    assert (many.status_code, many.json()["error_type"]) == (413, "batch_too_large")
    assert (other.status_code, other.json()["error_type"]) == (404, "unknown_adapter")
    assert "'fake-adapter'" in other.json()["error"]
    assert "label, probability" in unknown.json()["error"]
    assert "equally many" in unequal.json()["error"]


async def test_metadata():
    async with serving() as server:
        got = await everything(server)
    assert got["/v2"]["name"] == "dalorra"
    assert got["/v2"]["extensions"] == []
    assert got["/v2/health/live"] == {"live": True}
    assert got["/v2/health/ready"] == {"ready": True}
    assert got["/v2/models/fake-adapter/ready"] == {"name": "fake-adapter", "ready": True}
    model = got["/v2/models/fake-adapter"]
    assert model["inputs"] == [{"name": "sentence", "datatype": "BYTES", "shape": [-1]}]
    assert [one["name"] for one in model["outputs"]] == [
        "label", "probability", "variance", "decision",
    ]  # fmt: skip


async def everything(server: RunningServer) -> dict[str, Any]:
    paths = ["/v2", "/v2/health/live", "/v2/health/ready"]
    paths += ["/v2/models/fake-adapter", "/v2/models/fake-adapter/ready"]
    return {path: (await server.client.get(path)).json() for path in paths}


async def test_only_health_is_open():
    async with serving(api_keys="k") as server:
        got = await everything(server)
        infer = await server.client.post(INFER, json={"inputs": [tensor("a")]})
    refused = {path for path, body in got.items() if body.get("error_type") == "unauthorized"}
    assert refused == {"/v2", "/v2/models/fake-adapter", "/v2/models/fake-adapter/ready"}
    assert infer.status_code == 401


async def test_it_is_not_ready_while_the_model_loads():
    predictor = FakePredictor()
    predictor.broken = True  # fails to warm up
    async with serving(predictor) as server:
        for path in ("/v2/health/ready", "/v2/health/live", "/v2/models/fake-adapter/ready"):
            assert (await server.client.get(path)).status_code == 503, path
