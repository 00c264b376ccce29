"""Attacks on connections: what a client may leave undone, and for how long."""

import asyncio
import json
import resource
import ssl
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from dalorra.errors import ConfigError
from service.connections import BACKLOG, GUESTS, LONGEST_HEAD, Part, room_for
from service.settings import Settings
from service.tls import tls_context
from tests.certificates import write
from tests.listening import Listening, head, listening

SHORT = 0.2


class Application:
    """Answers at once without a look at the body, on /slow once it may, on /long a lot."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.guests: list[str] = []
        self.working = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["state"].get("guest"):
            self.guests.append(scope["path"])
        if scope["path"] == "/slow":
            self.working += 1
            await self.may.wait()
        body = b"x" * (50_000_000 if scope["path"] == "/long" else 4)
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
async def app() -> Application:
    return Application()


async def empties(server: Listening, within: float = 5.0) -> None:
    async with asyncio.timeout(within):
        while len(server.door):  # noqa: ASYNC110 - nothing tells us
            await asyncio.sleep(0.01)


def told(answer: bytes) -> tuple[int, dict[str, str]]:
    first, _, body = answer.partition(b"\r\n\r\n")
    return int(first.split()[1]), json.loads(body)


@pytest.mark.parametrize("drip", [b"", b"X-A: b\r\n", b"a"])
async def test_a_head_that_never_ends_has_its_time(app: Application, drip: bytes):
    async with listening(app, seconds={Part.HEAD: SHORT}) as server:
        async with await server.connect(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: ") as caller:
            if drip:
                dripping = asyncio.create_task(caller.drip(drip, SHORT / 20))
            status, body = told(await caller.rest())
            if drip:
                dripping.cancel()
        await empties(server)
    assert (status, body["error_type"]) == (408, "request_timeout")
    assert f"within {SHORT:g} s" in body["error"]
    assert set(body) == {"error", "error_type", "request_id"}


async def test_who_says_nothing_is_shown_out(app: Application):
    async with listening(app, seconds={Part.HEAD: SHORT}) as server:
        async with await server.connect() as caller:
            assert await caller.rest() == b""
        await empties(server)


async def test_who_was_answered_may_stay_a_while(app: Application):
    async with listening(app, seconds={Part.HEAD: SHORT, Part.ASK: 3 * SHORT}) as server:
        async with await server.connect(head("GET", "/")) as caller:
            assert b"200 OK" in await caller.one()
            await asyncio.sleep(1.5 * SHORT)
            await caller.say(head("GET", "/"))
            assert b"200 OK" in await caller.one()
            assert await caller.rest() == b""
        await empties(server)


async def test_the_time_of_a_head_begins_with_its_first_byte(app: Application):
    async with (
        listening(app, seconds={Part.HEAD: SHORT}) as server,
        await server.connect(head("GET", "/")) as caller,
    ):
        await caller.one()
        await caller.say(b"GET /")
        assert told(await caller.rest())[0] == 408


async def test_a_body_that_never_ends_has_its_time_though_it_was_answered(app: Application):
    async with listening(app, seconds={Part.BODY: SHORT}) as server:
        said = head("POST", "/", "Content-Length: 1900000")
        async with await server.connect(said) as caller:
            assert b"200 OK" in await caller.one()
            dripping = asyncio.create_task(caller.drip(b"x" * 1_000, SHORT / 20))
            assert await caller.rest() == b""
            dripping.cancel()
        await empties(server)


async def test_each_request_has_its_own_time(app: Application):
    said = head("POST", "/", "Content-Length: 2")
    async with (
        listening(app, seconds={Part.BODY: SHORT}) as server,
        await server.connect(said) as caller,
    ):
        for _ in range(4):
            await asyncio.sleep(SHORT / 2)
            await caller.say(b"ab" + said)
            assert b"200 OK" in await caller.one()


async def test_who_does_not_read_is_cut_off(app: Application):
    async with (
        listening(app, seconds={Part.READ: SHORT}) as server,
        await server.connect(head("GET", "/long")),
    ):
        await empties(server)


async def test_requests_far_ahead_of_their_answers_are_refused(app: Application):
    async with listening(app) as server:
        async with await server.connect(head("GET", "/slow")) as caller:
            await caller.say(b"x" * (LONGEST_HEAD + 1))
            assert await caller.rest() == b""
        await empties(server)


async def test_one_request_ahead_is_answered_in_its_turn(app: Application):
    said = head("GET", "/slow") + head("GET", "/")
    async with listening(app) as server, await server.connect(said) as caller:
        app.may.set()
        assert b"200 OK" in await caller.one()
        assert b"200 OK" in await caller.one()


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * LONGEST_HEAD,
        b"GET / HTTP/1.1\r\nHost: a\r\nNo Name: b\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_told_so_in_the_form_of_every_error(app: Application, said: bytes):
    async with listening(app) as server, await server.connect(said) as caller:
        status, body = told(await caller.rest())
    assert (status, body["error_type"]) == (400, "bad_request")


@pytest.mark.parametrize("answered", [False, True])
async def test_a_broken_body_ends_the_connection_and_no_traceback_is_logged(
    app: Application, answered: bool, caplog: pytest.LogCaptureFixture
):
    async with listening(app) as server:
        said = head("POST", "/long", "Transfer-Encoding: chunked")
        async with await server.connect(said) as caller:
            if answered:
                await caller.reader.readexactly(100)
            await caller.say(b"this is no chunk\r\n\r\n")
            answer = await caller.rest()
        await empties(server)
    assert answer.startswith(b"HTTP/1.1 400 ") is not answered
    assert answer.count(b"HTTP/1.1 ") == (0 if answered else 2)  # once in the sentence
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_where_there_is_no_room_who_is_late_longest_goes(app: Application):
    async with AsyncExitStack() as stack, listening(app, room=5) as server:
        half_open = [
            await stack.enter_async_context(await server.connect(b"GET / HT")) for _ in range(60)
        ]
        assert b"200 OK" in await server.ask("/health/live")
        assert len(server.door) <= 5
        assert await half_open[0].rest() == b""
    assert app.guests == []


async def test_who_sends_a_body_goes_after_those_who_do_not(app: Application):
    async with AsyncExitStack() as stack, listening(app, room=3) as server:
        body = await server.connect(head("POST", "/slow", "Content-Length: 2"))
        await stack.enter_async_context(body)
        for _ in range(10):
            await stack.enter_async_context(await server.connect(b"GET / HT"))
        app.may.set()
        await body.say(b"ab")
        assert b"200 OK" in await body.one()


async def test_where_all_wait_for_their_answers_a_guest_is_known_as_one(app: Application):
    async with AsyncExitStack() as stack, listening(app, room=3) as server:
        for _ in range(3):
            await stack.enter_async_context(await server.connect(head("GET", "/slow")))
        async with asyncio.timeout(5):
            while app.working < 3:  # noqa: ASYNC110 - nothing tells us
                await asyncio.sleep(0.01)
        crowd = [await server.connect(head("GET", "/slow")) for _ in range(3 * GUESTS)]
        for one in crowd:
            await stack.enter_async_context(one)
        await asyncio.sleep(0.05)
        assert len(server.door) == 3 + GUESTS
        for one in crowd:
            one.writer.transport.abort()
        await asyncio.sleep(0.05)
        assert b"200 OK" in await server.ask("/health/live")
    assert set(app.guests) == {"/slow", "/health/live"}


@pytest.fixture
def certified(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The two sides of TLS: a server with a certificate, a client that trusts it."""
    cert, key = write(tmp_path / "cert.pem", tmp_path / "key.pem")
    settings = Settings(ssl_certfile=cert, ssl_keyfile=key)
    context = tls_context(settings)
    assert context is not None
    return context, ssl.create_default_context(cafile=str(cert))


async def test_over_tls_it_is_the_same(app: Application, certified: Any):
    ours, theirs = certified
    async with listening(app, tls=ours, seconds={Part.HEAD: 2.0}) as server:
        for _ in range(20):
            said = head("GET", "/", "Connection: close")
            async with await server.connect(said, theirs) as caller:
                assert b"200 OK" in await caller.rest()
        async with await server.connect(b"GET / HTTP/1.1\r\n", theirs) as caller:
            assert told(await caller.rest())[0] == 408
        await empties(server)


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"])
async def test_half_a_handshake_has_its_time_and_keeps_no_place(
    app: Application, certified: Any, said: bytes
):
    ours, theirs = certified
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            listening(app, tls=ours, room=5, seconds={Part.HEAD: 2.0})
        )
        for _ in range(30):
            await stack.enter_async_context(await server.connect(said))
        for _ in range(5):
            good = head("GET", "/", "Connection: close")
            async with await server.connect(good, theirs) as caller:
                assert b"200 OK" in await caller.rest()
        assert len(server.door) <= 5
        await empties(server)


@pytest.mark.parametrize(
    ("soft", "hard", "room", "raised"),
    [(1_000_000, 1_000_000, 1_000, None), (256, 4_096, 1_000, 1_288), (256, 300, 12, 300)],
)
def test_there_are_as_many_connections_as_descriptors(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, room: int, raised: int | None
):
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    with capture_logs() as logs:
        assert room_for(1_000) == room
    assert asked == ([] if raised is None else [(raised, hard)])
    assert [line["event"] for line in logs] == (["few_connections"] if room < 1_000 else [])


def test_too_few_descriptors_are_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    with pytest.raises(
        ConfigError, match=f"may open 64 files, but needs {GUESTS + 3 * BACKLOG + 81}"
    ):
        room_for(1_000)
