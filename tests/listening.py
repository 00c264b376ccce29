"""An application behind the real protocol on a real socket, in the test's own loop."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import uvicorn
from uvicorn.server import ServerState

from service.connections import LONGEST_HEAD, Connection, Door, Part

PATIENCE = dict.fromkeys(Part, 60.0)
"""In nobody's way."""


@dataclass
class Listening:
    """Where it listens, and whom it has let in."""

    port: int
    door: Door

    async def connect(self, said: bytes = b"", tls: ssl.SSLContext | None = None) -> "Caller":
        """A connection on which this has been sent."""
        caller = Caller(*await asyncio.open_connection("127.0.0.1", self.port, ssl=tls))
        await caller.say(said)
        return caller

    async def ask(self, path: str, method: str = "GET") -> bytes:
        """The whole answer to a request on a connection of its own."""
        async with await self.connect(head(method, path, "Connection: close")) as caller:
            return await caller.rest()


@dataclass
class Caller:
    """A client that says exactly what it is told to."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()

    async def say(self, said: bytes) -> None:
        self.writer.write(said)
        await self.writer.drain()

    async def drip(self, piece: bytes, every: float) -> None:
        """Says a piece again and again, until the connection is closed."""
        while not self.reader.at_eof() and not self.writer.is_closing():
            await self.say(piece)
            await asyncio.sleep(every)

    async def rest(self, within: float = 10.0) -> bytes:
        """All that is answered until the connection is closed."""
        answer = b""
        async with asyncio.timeout(within):
            try:
                while piece := await self.reader.read(65_536):
                    answer += piece
            except ConnectionResetError:
                pass
        return answer

    async def one(self) -> bytes:
        """One answer, its body included."""
        answer = await self.reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return answer + await self.reader.readexactly(length)


def head(method: str, path: str, *lines: str) -> bytes:
    """The head of a request."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


@asynccontextmanager
async def listening(
    app: Any,
    *,
    room: int = 1_000,
    seconds: dict[Part, float] | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Listening]:
    """Listens on a free port, with these seconds for a client's parts and ample time for others."""
    loop = asyncio.get_running_loop()
    door = Door(room, PATIENCE | (seconds or {}), tls)
    config = uvicorn.Config(app, lifespan="off", log_config=None)
    config.h11_max_incomplete_event_size = LONGEST_HEAD
    config.load()
    state = ServerState()

    def connection() -> Connection:
        return Connection(door, config=config, server_state=state, app_state={}, _loop=loop)

    server = await loop.create_server(connection, "127.0.0.1", 0)
    try:
        yield Listening(server.sockets[0].getsockname()[1], door)
    finally:
        server.close()
        for one in list(state.connections):
            one.transport.abort()
        for task in state.tasks:
            task.cancel()
        await asyncio.sleep(0)
