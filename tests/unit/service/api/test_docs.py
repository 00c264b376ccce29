"""`/docs`: complete, and all of it from here."""

import re

from service.api.docs import as_page
from service.app import create_app
from service.settings import Settings
from tests.fakes import FakePredictor
from tests.serving import serving


async def test_it_lists_every_operation_and_loads_nothing_from_elsewhere():
    async with serving() as server:
        response = await server.client.get("/docs")
        paths = (await server.client.get("/openapi.json")).json()["paths"]
        loaded = set(re.findall(r'(?:href|src)="([^"]+)"', response.text))
        for path in loaded:
            assert (await server.client.get(f"/{path}")).status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["content-security-policy"].startswith("default-src 'none'")
    assert loaded == {"page.css", "openapi.json"}
    assert "<script" not in response.text
    for path, operations in paths.items():
        for method in operations:
            assert f"<code>{method.upper()} {path}</code>" in response.text


async def test_other_ways_to_it_are_gone():
    async with serving() as server:
        for path in ("/redoc", "/docs/oauth2-redirect"):
            assert (await server.client.get(path)).status_code == 404


def test_an_example_is_shown_and_nothing_is_taken_for_markup():
    document = create_app(Settings(), lambda _: FakePredictor()).openapi()
    document["info"]["title"] = "<script>alert(1)</script>"
    page = as_page(document)
    assert "<script" not in page
    assert "This movie was fantastic!" in page
    assert "<code>sample_probabilities</code> (optional)" in page
