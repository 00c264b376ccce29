"""The OpenAPI document: complete, and its examples are true."""

from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter

from service.api import schemas
from service.app import create_app
from service.settings import Settings
from tests.fakes import FakePredictor

PREDICTION = {"200", "400", "401", "404", "413", "422", "429", "500", "503", "504"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(Settings(), lambda _: FakePredictor()).openapi()


@pytest.mark.parametrize(
    ("path", "method", "codes"),
    [
        ("/predict", "post", PREDICTION),
        ("/predict/batch", "post", PREDICTION),
        (
            "/feedback",
            "post",
            {"200", "400", "401", "404", "409", "413", "422", "429", "500", "503"},
        ),
        ("/info", "get", {"200", "401", "404", "422", "503"}),
        ("/health/live", "get", {"200", "503"}),
        ("/health/ready", "get", {"200", "503"}),
        ("/metrics", "get", {"200"}),
        ("/tool.json", "get", {"200", "401", "404", "422", "503"}),
        ("/adapters", "get", {"200", "401", "503"}),
        ("/adapters/{name}", "put", {"200", "400", "401", "403", "409", "413", "422", "503"}),
        ("/adapters/{name}", "delete", {"200", "401", "403", "404", "409", "422", "503"}),
        ("/v2", "get", {"200", "401"}),
        ("/v2/health/live", "get", {"200", "503"}),
        ("/v2/health/ready", "get", {"200", "503"}),
        ("/v2/models/{model}", "get", {"200", "401", "404", "422", "503"}),
        ("/v2/models/{model}/ready", "get", {"200", "401", "404", "422", "503"}),
        ("/v2/models/{model}/infer", "post", PREDICTION),
    ],
)
def test_every_code_is_documented(
    document: dict[str, Any], path: str, method: str, codes: set[str]
):
    responses = document["paths"][path][method]["responses"]
    assert set(responses) == codes
    for code in codes - {"200"}:
        schema = responses[code]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/ErrorBody"}


TYPED = {"200", "401", "404", "413", "429", "500", "503", "504"}


@pytest.mark.parametrize(
    ("path", "method", "codes", "form"),
    [
        ("/v1/systemone", "post", TYPED | {"422"}, "detail"),
        ("/v1/decisions", "post", TYPED | {"400"}, "error"),
        ("/v1/models", "get", {"200", "401", "503"}, "detail"),
    ],
)
def test_protocols_of_others_document_their_own_form(
    document: dict[str, Any], path: str, method: str, codes: set[str], form: str
):
    operation = document["paths"][path][method]
    assert set(operation["responses"]) == codes
    for code in codes - {"200"}:
        examples = operation["responses"][code]["content"]["application/json"]["examples"]
        assert examples
        assert {form} == set.union(*(set(one["value"]) for one in examples.values()))
    if method == "post":
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        assert "$ref" not in str(schema)
        [example] = schema["examples"]
        Draft202012Validator(schema).validate(example)


def test_429_documents_its_header(document: dict[str, Any]):
    assert "Retry-After" in document["paths"]["/predict"]["post"]["responses"]["429"]["headers"]


def test_every_example_validates(document: dict[str, Any]):
    checked = 0

    def walk(node: Any) -> None:
        nonlocal checked
        if isinstance(node, list):
            for item in node:
                walk(item)
        if not isinstance(node, dict):
            return
        schema = node.get("schema", node)
        examples = node.get("examples", [])
        values = (
            [example["value"] for example in examples.values()]
            if isinstance(examples, dict)
            else examples
        )
        for value in values:
            rooted = {**schema, "components": document["components"]}
            Draft202012Validator(rooted).validate(value)
            checked += 1
        for item in node.values():
            walk(item)

    walk(document)
    # Two predictions, two inputs, two health words, and every error of every path.
    assert checked >= 20


@pytest.mark.parametrize("name", ["PredictResponse", "BatchResponse"])
def test_examples_are_what_the_models_would_write(name: str):
    model = getattr(schemas, name)
    for example in model.model_config["json_schema_extra"]["examples"]:
        read = TypeAdapter(model).validate_python(example)
        assert read.model_dump(mode="json", exclude_unset=True) == example


def test_a_server_with_keys_documents_them():
    document = create_app(Settings(api_keys="k"), lambda _: FakePredictor()).openapi()  # type: ignore[arg-type]

    assert document["paths"]["/predict"]["post"]["security"] == [{"key": []}]
    assert "security" not in document["paths"]["/metrics"]["get"]
    assert "security" not in document["paths"]["/v2/health/ready"]["get"]
    assert document["paths"]["/v2/models/{model}/infer"]["post"]["security"] == [{"key": []}]
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
