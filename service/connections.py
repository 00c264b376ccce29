"""Connections: how many there are, and how long a client may take over its part.

uvicorn's own protocol speaks HTTP, lets anybody in, and waits without end for a request that was
begun or an answer that is not read. Here each of these has its time. Where there is no room, who
has had the server wait longest goes, so that a newcomer, which may be a probe, finds a place.
"""

from __future__ import annotations

import asyncio
import resource
import secrets
import ssl
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any

import h11
import structlog
from uvicorn.protocols.http.h11_impl import H11Protocol

from dalorra.errors import ConfigError
from service.api.errors import error_response
from service.api.middleware.door import GUEST
from service.api.middleware.request_id import HEADER
from service.errors import BadRequestError, ServiceError, TooSlowError

LONGEST_HEAD = 16_384
"""Bytes of a request line and its headers; h11 answers longer ones with 400."""

BACKLOG = 64
"""Connections that the system may accept before the server sees the first of them."""

GUESTS = 16
"""Connections beyond the limit, kept for probes: nothing else is answered on them."""

_PASSING = 3 * BACKLOG
"""Descriptors of connections that are none inside: asyncio accepts as many as the backlog in one
turn, they enter in the next, while as many more are accepted, and whoever they turned out is closed
in the one after that."""

_OTHER_DESCRIPTORS = 80
"""For all that is no connection: the model's files, the device, the feedback store, the log."""

_log = structlog.get_logger("dalorra.service")


class Part(Enum):
    """What the client of a connection has to do next; nothing while its answer is worked on."""

    ASK = auto()  # again, on a connection that was answered
    HEAD = auto()  # send the rest of a request's head
    BODY = auto()  # send the rest of its body
    READ = auto()  # read its answer


class Door:
    """What the connections of one server have in common.

    Args:
        room: connections that are served.
        seconds: for each part of a client; then its connection is closed.
        tls: certificate and key, if TLS is spoken.
    """

    def __init__(
        self, room: int, seconds: Mapping[Part, float], tls: ssl.SSLContext | None = None
    ) -> None:
        self.seconds = seconds
        self.tls = tls
        self._room = room
        self._inside: set[Connection] = set()

    def __len__(self) -> int:
        return len(self._inside)

    def enter(self, newcomer: Connection) -> None:
        """Takes a connection in, as a guest where nobody's place can be had."""
        if len(self._inside) >= self._room:
            self._make_room()
        newcomer.guest = len(self._inside) >= self._room
        if len(self._inside) >= self._room + GUESTS:
            newcomer.abort()
        else:
            self._inside.add(newcomer)

    def leave(self, connection: Connection) -> None:
        """Gives its place to others."""
        self._inside.discard(connection)

    def _make_room(self) -> None:
        """Closes the connection whose client is late longest; one that sends a body goes last."""
        late = [one for one in self._inside if one.part is not None]
        if late:
            oldest = min(late, key=lambda one: (one.part is Part.BODY, one.since))
            _log.debug("connection_closed", reason="no room", awaited=str(oldest.part))
            self.leave(oldest)
            oldest.abort()


class Connection(H11Protocol):
    """One connection, watched.

    Attributes:
        guest: whether only probes are answered.
        part: what its client has to do next.
        since: when that began, in loop time.
    """

    def __init__(self, door: Door, **options: Any) -> None:
        super().__init__(**options)
        self.guest = False
        self.part: Part | None = None
        self.since = 0.0
        self._door = door
        self._request: object = None  # to which the part belongs
        self._timer: asyncio.TimerHandle | None = None
        self._handshake: asyncio.Task[None] | None = None
        self._open = False  # for HTTP
        self._early = bytearray()

    def abort(self) -> None:
        """Closes it at once, whatever is still to be sent."""
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._door.enter(self)
        if transport.is_closing():
            return
        if self.guest:
            self.app_state = {**self.app_state, GUEST: True}
        self._expect(Part.HEAD)
        if self._door.tls is None:
            self._begin(transport)
        else:
            transport.pause_reading()  # what comes is for TLS
            self._handshake = self.loop.create_task(self._secure(transport, self._door.tls))

    async def _secure(self, transport: asyncio.Transport, tls: ssl.SSLContext) -> None:
        seconds = self._door.seconds[Part.HEAD]
        try:
            secured = await self.loop.start_tls(
                transport, self, tls, server_side=True, ssl_handshake_timeout=seconds
            )
        except OSError as error:  # those of TLS are, too
            self.connection_lost(error)
            return
        if secured is None or secured.is_closing():
            self.connection_lost(None)
            return
        self._begin(secured)
        if self._early:  # it may come with the end of the handshake
            self.data_received(bytes(self._early))
            self._early.clear()

    def _begin(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.leave(self)
        self._expect(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._open:
            self._early += data
            return
        super().data_received(data)
        if self.conn.their_state in (h11.DONE, h11.MUST_CLOSE) and self._unread > LONGEST_HEAD:
            self.abort()  # more requests than one ahead of the answers
        self._look()

    def on_response_complete(self) -> None:
        self.cycle.body = bytearray()  # nobody reads the rest
        super().on_response_complete()
        self._look()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._look()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._look()

    def send_400_response(self, msg: str) -> None:
        self._refuse(BadRequestError("this is no request in HTTP/1.1 that the server can read"))

    @property
    def _unread(self) -> int:
        """Bytes that have come of the next request."""
        return len(self.conn.trailing_data[0])

    def _look(self) -> None:
        """Sees whose turn it is."""
        theirs = self.conn.their_state
        if self.transport.is_closing() or self.flow.write_paused:
            self._expect(Part.READ)
        elif theirs is h11.IDLE:
            self._expect(Part.HEAD if self._unread or self.cycle is None else Part.ASK)
        else:
            self._expect(Part.BODY if theirs is h11.SEND_BODY else None)

    def _expect(self, part: Part | None) -> None:
        if (part, self.cycle) == (self.part, self._request):
            return
        self.part, self._request, self.since = part, self.cycle, self.loop.time()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = (
            self.loop.call_later(self._door.seconds[part], self._time_is_up) if part else None
        )

    def _time_is_up(self) -> None:
        if self.part is Part.HEAD and self._unread:
            seconds = self._door.seconds[Part.HEAD]
            self._refuse(TooSlowError(f"the head of the request was not here within {seconds:g} s"))
        else:
            self.abort()

    def _refuse(self, error: ServiceError) -> None:
        """Answers a request that no application can be asked about, and closes the connection."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.abort()  # in the middle of another answer
            return
        if self.conn.our_state is h11.SEND_RESPONSE:
            self.cycle.disconnected = True  # whatever the application says now is not sent
            self.cycle.message_event.set()
        request_id = secrets.token_hex(16)
        state = {"request_id": request_id}
        answer = error_response(error, {"path": "", "state": state})
        answer.headers.update({HEADER: request_id, "Connection": "close"})
        for event in (
            h11.Response(status_code=answer.status_code, headers=answer.raw_headers),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self._look()


def room_for(wanted: int) -> int:
    """How many connections the process has file descriptors for, `wanted` at most.

    Raises the limit of descriptors as far as that takes and the system allows.

    Raises:
        ConfigError: there are too few for any.
    """
    others = GUESTS + _PASSING + _OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted + others:
        return wanted
    most = wanted + others if hard == resource.RLIM_INFINITY else min(wanted + others, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    room = most - others
    if room < 1:
        raise ConfigError(
            f"the process may open {most} files, but needs {others + 1} or more: raise the limit "
            "(ulimit -n, or what your supervisor calls it)"
        )
    if room < wanted:
        _log.warning("few_connections", max_connections=room, open_files=most)
    return room
