"""The page: what is sent, and the samples that it draws. How it behaves is for a browser to say."""

import re

import pytest

from tests.fakes import expected_prediction
from tests.serving import serving

FILES = {
    "/": "text/html",
    "/page.css": "text/css",
    "/page.js": "text/javascript",
    "/charts.js": "text/javascript",
    "/predict.js": "text/javascript",
    "/questions.js": "text/javascript",
    "/server.js": "text/javascript",
}


@pytest.mark.parametrize("path", FILES)
async def test_it_is_open_and_strict(path: str):
    async with serving(api_keys="k") as server:
        response = await server.client.get(path)
        assert (await server.client.get("/info")).status_code == 401
    assert response.status_code == 200
    assert response.headers["content-type"].startswith(FILES[path])
    policy = dict(
        directive.split(" ", 1)
        for directive in response.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert response.headers["x-content-type-options"] == "nosniff"


async def test_it_has_nothing_inline_and_nothing_from_elsewhere():
    async with serving() as server:
        text = "".join([(await server.client.get(path)).text for path in FILES])
        html = (await server.client.get("/")).text
    assert set(re.findall(r"https?://([\w.]+)", text)) == {"www.w3.org"}  # SVG's name, not fetched
    assert not re.search(r"<style|style=|\son\w+=|innerHTML|<script(?! type=\"module\" src)", text)
    assert set(re.findall(r'(?:href|src)="([^":]+)"', html)) == {"docs", "page.css", "page.js"}


async def test_the_page_is_no_part_of_the_api():
    async with serving() as server:
        paths = (await server.client.get("/openapi.json")).json()["paths"]
    assert not set(FILES) & set(paths)


async def test_samples_are_sent_where_they_are_asked_for():
    async with serving() as server:
        one = (await server.predict("hello", return_samples=True)).json()
        batch = await server.predict_batch(["hello", "x"], return_samples=True)
        plain = (await server.predict("hello")).json()
        expected = expected_prediction(server.predictor.encode("hello"))
    assert one["sample_probabilities"] == list(expected.sample_probabilities)
    assert len(one["sample_probabilities"]) == one["samples"]
    assert batch[0]["sample_probabilities"] == one["sample_probabilities"]
    assert batch[1]["sample_probabilities"] != one["sample_probabilities"]
    assert "sample_probabilities" not in plain
