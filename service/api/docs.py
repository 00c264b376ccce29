"""`/docs`: the OpenAPI document for people to read; nothing is loaded from elsewhere."""

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI, Response

from service.api.page import HEADERS

_CONTENT_TYPE = {"Content-Type": "text/html; charset=utf-8"}


def docs_routes(app: FastAPI) -> APIRouter:
    """The page about the routes of an application; not part of its API."""
    router = APIRouter(include_in_schema=False)

    @router.get("/docs", response_class=Response)
    async def docs() -> Response:
        return Response(as_page(app.openapi()), headers={**_CONTENT_TYPE, **HEADERS})

    return router


def as_page(document: Mapping[str, Any]) -> str:
    """An OpenAPI document as a page of HTML."""
    about = document["info"]
    sections = "".join(
        _operation(document, path, method, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )
    title = escape(about["title"])
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{title}</title><link rel="stylesheet" href="page.css"></head>\n'
        f"<body><header><h1>{title} {escape(about['version'])}</h1>"
        '<nav><a href="openapi.json">openapi.json</a></nav></header>\n'
        f'<main class="docs"><p>{escape(about.get("description", ""))}</p>\n{sections}</main>'
        "</body></html>\n"
    )


def _operation(
    document: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any]
) -> str:
    parameters = [
        (one["name"], one.get("description", ""), one.get("required", False))
        for one in operation.get("parameters", ())
    ]
    body = _schema(document, operation.get("requestBody", {}))
    answers = "".join(
        f"<dt>{escape(code)}</dt><dd>{escape(answer['description'])}</dd>"
        for code, answer in operation["responses"].items()
    )
    return (
        f'<section class="card"><h2><code>{escape(method.upper())} {escape(path)}</code></h2>'
        f"<p>{escape(operation.get('description', ''))}</p>"
        + _list("Parameters", parameters)
        + _list("Body", list(_fields(body)))
        + _example(body)
        + _list("Answer", list(_fields(_schema(document, operation["responses"].get("200", {})))))
        + f"<h3>Statuses</h3><dl>{answers}</dl></section>\n"
    )


def _schema(document: Mapping[str, Any], content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a body in JSON; empty where there is none."""
    schema: Mapping[str, Any] = (
        content.get("content", {}).get("application/json", {}).get("schema", {})
    )
    name = schema.get("$ref", "").removeprefix("#/components/schemas/")
    return document["components"]["schemas"][name] if name else schema


def _fields(schema: Mapping[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Name and description of each property, and whether it has to be there."""
    for name, one in schema.get("properties", {}).items():
        yield name, one.get("description", ""), name in schema.get("required", ())


def _list(title: str, fields: list[tuple[str, str, bool]]) -> str:
    if not fields:
        return ""
    items = "".join(
        f"<dt><code>{escape(name)}</code>{'' if required else ' (optional)'}</dt>"
        f"<dd>{escape(description)}</dd>"
        for name, description, required in fields
    )
    return f"<h3>{title}</h3><dl>{items}</dl>"


def _example(schema: Mapping[str, Any]) -> str:
    """An example of a body: its own, or one made of those of its fields that it cannot lack."""
    examples = schema.get("examples") or [
        {
            name: one["examples"][0]
            for name, one in schema.get("properties", {}).items()
            if one.get("examples") and name in schema.get("required", ())
        }
    ]
    text = json.dumps(examples[0], indent=2, ensure_ascii=False)
    return f"<pre>{escape(text)}</pre>" if examples[0] else ""
