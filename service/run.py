"""Runs the server in this process until it is told to stop, or until its engine is dead."""

import asyncio
import functools
import logging
import os
from collections.abc import Coroutine
from pathlib import Path
from types import FrameType
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI

from service.adapters import Base
from service.app import create_app, load_shared_base
from service.connections import BACKLOG, LONGEST_HEAD, Connection, Door, Part, room_for
from service.feedback.ledger import STOP_SECONDS
from service.lifecycle import Lifecycle
from service.logs import adopt_logger, configure_logging
from service.settings import Settings, load_settings
from service.tls import tls_context

_log = structlog.get_logger("dalorra.service")

CLOSE_SECONDS = 5  # for the last answers to be read, once all are written
END_SECONDS = CLOSE_SECONDS + STOP_SECONDS
"""From the end of the draining to the end of the process, at most."""

EXIT_DEAD = 70
"""Exit code where the engine was dead: a restart may help."""

EXIT_SIGNALLED = 128
"""Plus the number of the second signal, as shells have it."""

_HASTY_CLOSE_SECONDS = 1
_KEEP_ALIVE_SECONDS = 75  # above the idle time of common balancers, so that they close first


def serve(config: Path | None = None, **overrides: Any) -> None:
    """Serves until SIGTERM or SIGINT, then finishes the queue and returns.

    Args:
        config: TOML or YAML file with settings.
        overrides: settings by name, which win over the environment and the file.

    Raises:
        ConfigError: a setting is unknown or wrong.
        DalorraError: the model could not be loaded.
    """
    settings = load_settings(config, **overrides)
    if settings.adapter is None and not settings.adapters:
        from dalorra.adapter.directory import bundled_adapters

        settings = settings.model_copy(update={"adapters": bundled_adapters()})
    app = create_app(settings, _load)
    configure_logging(settings.log_level, settings.log_format)
    _log.info("starting", **settings.redacted())
    if not settings.key_digests() and not settings.on_loopback:
        _log.warning("open", reason="no api_keys: whoever reaches the address may ask")
    serve_app(app, settings)


def serve_app(app: FastAPI, settings: Settings) -> None:
    """Serves an application of `create_app` until it is told to stop.

    Ends the process where it was told twice, or where the model does not come back.

    Raises:
        ConfigError: there is something wrong with the certificate, or too few files may be open.
        Exception: what loading the model raised.
    """
    lifecycle: Lifecycle = app.state.lifecycle
    door = Door(room_for(settings.max_connections), _patience(settings), tls_context(settings))
    config = uvicorn.Config(
        app,
        http=functools.partial(Connection, door),  # type: ignore[arg-type]  # makes a protocol
        h11_max_incomplete_event_size=LONGEST_HEAD,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="on",
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=CLOSE_SECONDS,
        backlog=BACKLOG,
    )
    server = Server(config, lifecycle)
    server.run()
    if lifecycle.hung or server.exit_code:
        # The interpreter's own end takes seconds, and would crash in a forward that goes on.
        logging.shutdown()
        os._exit(server.exit_code)
    if lifecycle.failure is not None:
        raise lifecycle.failure


def _patience(settings: Settings) -> dict[Part, float]:
    """Seconds that a client has for each part."""
    return {
        Part.ASK: _KEEP_ALIVE_SECONDS,
        Part.HEAD: settings.header_seconds,
        Part.BODY: settings.body_seconds + 1,  # the application refuses it first, with a sentence
        Part.READ: settings.body_seconds,
    }


def _load(settings: Settings) -> Base:
    import huggingface_hub
    import transformers

    for library in (huggingface_hub, transformers):
        adopt_logger(library.__name__)
    return load_shared_base(settings)


class Server(uvicorn.Server):
    """Drains before it stops listening: probes see it go, and nothing is cut off.

    The first signal starts the draining: readiness turns 503, newcomers are told to go elsewhere,
    what is queued is answered. A second signal stops at once: what waits is told to go elsewhere,
    too. A model that cannot be loaded, or an engine that is dead, stops it as well.

    Attributes:
        exit_code: what the process has to end with.
    """

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle) -> None:
        super().__init__(config)
        self.exit_code = 0
        self._lifecycle = lifecycle
        self._signals: asyncio.Queue[int] = asyncio.Queue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._conductor: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Starts to listen, and to wait for the end."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self._conductor = self._loop.create_task(self._conduct(), name="conductor")
        for server in self.servers:
            for listener in server.sockets:
                host, port = listener.getsockname()[:2]
                _log.info("listening", host=host, port=port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Signal handler; runs between any two bytecodes, so it only passes the signal on."""
        if self._loop is None:
            super().handle_exit(sig, frame)
        else:
            self._loop.call_soon_threadsafe(self._signals.put_nowait, sig)

    async def _conduct(self) -> None:
        await _first(self._signals.get(), self._load_failure(), self._death())
        if self.exit_code:
            await self._hurry()
        else:
            await _first(self._second_signal(), self._lifecycle.drain())
        self.should_exit = True
        await self._second_signal()

    async def _death(self) -> None:
        await self._lifecycle.death()
        self.exit_code = EXIT_DEAD

    async def _second_signal(self) -> None:
        self.exit_code = EXIT_SIGNALLED + await self._signals.get()
        await self._hurry()

    async def _hurry(self) -> None:
        """Waits for nothing any more."""
        self.config.timeout_graceful_shutdown = _HASTY_CLOSE_SECONDS
        await self._lifecycle.abandon()
        if self.should_exit:  # what is still open is waited for already
            for task in list(self.server_state.tasks):
                task.cancel()
            await asyncio.sleep(_HASTY_CLOSE_SECONDS / 10)  # in which it is told so
            for connection in list(self.server_state.connections):
                connection.transport.abort()

    async def _load_failure(self) -> None:
        loading = self._lifecycle.loading
        if loading is not None:
            await asyncio.wait([loading])
        if self._lifecycle.failure is None:
            await asyncio.Event().wait()  # loaded: there will be no failure


async def _first(*coroutines: Coroutine[Any, Any, Any]) -> None:
    """Returns once one of them is done; the others are cancelled."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
