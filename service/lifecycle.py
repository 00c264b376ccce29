"""From loading to ready to draining: what the server is doing, and whether it may be asked."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import Final

import structlog

from service.adapters import Adapters, Base
from service.engine import Engine, Limits, ModelThread
from service.errors import DrainingError, LoadingError, ServiceError, UnavailableError
from service.feedback import Ledger
from service.settings import Settings
from service.telemetry import Telemetry

LoadBase = Callable[[Settings], Base]

_OF_THE_DEADLINE: Final = 0.25
"""What a batch may take: who comes while one runs still has time to wait for another."""

_IDLE_SECONDS = 0.5  # in which a model thread that has nothing to do answers

_log = structlog.get_logger("dalorra.service")


class Phase(StrEnum):
    """Where the server is in its life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Lifecycle:
    """Owner of the engine, its adapters and threads, and the phase.

    Args:
        settings: limits and times.
        load_base: loads the base model; runs on the model thread, so that one thread touches the
            model from loading it to the last forward, and health is answered meanwhile.
        telemetry: metrics.
        ledger: hears which adapters are served.

    Attributes:
        phase: what it is doing.
        loading: loads the model.
        failure: why the model could not be loaded.
        abandoned: whether what was accepted is not waited for any more.
        hung: whether the model thread did not come back when all was over.
    """

    def __init__(
        self, settings: Settings, load_base: LoadBase, telemetry: Telemetry, ledger: Ledger
    ) -> None:
        self._settings = settings
        self._load_base = load_base
        self._telemetry = telemetry
        self._ledger = ledger
        self._engine: Engine | None = None
        self._adapters: Adapters | None = None
        self._model: ModelThread | None = None
        self._tokenizer: ThreadPoolExecutor | None = None
        self._draining: asyncio.Task[None] | None = None
        self.phase = Phase.LOADING
        self.abandoned = False
        self.hung = False
        self.loading: asyncio.Task[None] | None = None
        self.failure: Exception | None = None
        telemetry.watch(
            ready=lambda: self.not_ready() is None,
            requests=lambda: self._engine.queue_requests if self._engine else 0,
            rows=lambda: self._engine.queue_rows if self._engine else 0,
        )

    @property
    def engine(self) -> Engine:
        """The engine, while requests are taken.

        Raises:
            LoadingError, DrainingError, UnavailableError: no request is taken now.
        """
        refusal = self.not_ready()
        if refusal is not None:
            raise refusal
        if self._engine is None:
            raise LoadingError("the model is still loading")
        return self._engine

    @property
    def adapters(self) -> Adapters:
        """The adapters, while requests are taken.

        Raises:
            LoadingError, DrainingError, UnavailableError: no request is taken now.
        """
        if self.not_ready() is None and self._adapters is not None:
            return self._adapters
        raise self.not_ready() or LoadingError("the model is still loading")

    @property
    def ending(self) -> bool:
        """Whether the server takes no more requests, and never will."""
        return self.phase in (Phase.DRAINING, Phase.FAILED)

    def not_ready(self) -> ServiceError | None:
        """Why no request is taken now; None while requests are taken."""
        if self.phase is Phase.LOADING:
            return LoadingError("the model is still loading: try again in a moment")
        if self.phase is Phase.DRAINING:
            return DrainingError("the server is shutting down: try again")
        return self.not_alive()

    def not_alive(self) -> ServiceError | None:
        """Why only a restart can help; None as long as the server works."""
        if self.failure is not None:
            return UnavailableError(f"the model could not be loaded: {self.failure}")
        if self._engine is not None and self.phase is Phase.READY and not self._engine.alive:
            return UnavailableError("the model no longer works: restart the server")
        return None

    def start(self) -> None:
        """Begins to load the model."""
        self._model = ModelThread()
        self._tokenizer = ThreadPoolExecutor(self._settings.tokenizer_threads, "tokenizer")
        self.loading = asyncio.get_running_loop().create_task(
            self._load(self._model, self._tokenizer), name="load"
        )

    async def drain(self) -> None:
        """Takes no more requests, and returns when the queue is finished or the time is up."""
        if self._draining is None:
            if self.phase is not Phase.FAILED:
                self.phase = Phase.DRAINING
            self._draining = asyncio.get_running_loop().create_task(self._drain(), name="drain")
        # A caller that is cancelled does not stop the draining.
        await asyncio.shield(self._draining)

    async def abandon(self) -> None:
        """Ends at once: what still waits is told that the server shuts down."""
        self.abandoned = True
        draining = asyncio.ensure_future(self.drain())
        await asyncio.sleep(0)  # from here on, nothing new is taken
        if self._engine is not None:
            await self._engine.drain(0)
        await draining

    async def death(self) -> None:
        """Returns once the engine has been dead for `dead_seconds`."""
        seconds = self._settings.dead_seconds
        loop = asyncio.get_running_loop()
        since: float | None = None
        while since is None or loop.time() - since < seconds:
            await asyncio.sleep(min(1.0, seconds / 4))
            if self._engine is None or self.not_alive() is None:
                since = None
            elif since is None:
                since = loop.time()
                _log.critical("engine_dead", ends_in_seconds=seconds)

    async def _load(self, model: ModelThread, tokenizer: ThreadPoolExecutor) -> None:
        loop, settings = asyncio.get_running_loop(), self._settings
        started = loop.time()
        try:
            base = await loop.run_in_executor(model, self._load_base, settings)
            loaded = loop.time()
            adapters = Adapters(
                base,
                model=model,
                reader=tokenizer,
                limit=settings.max_adapters,
                watchers=(self._telemetry, self._ledger),
            )
            for name, path in settings.first_adapters():
                await adapters.load(path, name)
            engine = self._new_engine(model, tokenizer)
            await engine.measure(adapters.find())
            await self._ledger.caught_up()
        except Exception as error:  # noqa: BLE001 - kept for whoever asks, and ends the process
            self.failure = error
            self.phase = Phase.FAILED
            _log.error("load_failed", error=str(error), exc_info=error)
            return
        self._adapters, self._engine = adapters, engine
        self._telemetry.base_loaded(base.prefix_cache)
        engine.start()
        self.phase = Phase.READY
        cards = [one.card for one in adapters.served]
        _log.info(
            "ready",
            model=cards[0].model,
            adapter=cards[0].adapter,
            adapters={card.adapter: card.digest for card in cards},
            load_seconds=round(loaded - started, 3),
            adapters_seconds=round(loop.time() - loaded, 3),
        )

    def _new_engine(self, model: ModelThread, tokenizer: ThreadPoolExecutor) -> Engine:
        settings = self._settings
        limits = Limits(
            queue_requests=settings.max_queue_requests,
            queue_rows=settings.max_queue_rows,
            batch_seconds=_OF_THE_DEADLINE * settings.request_timeout_seconds,
            stall_seconds=settings.stall_seconds,
        )
        return Engine(model=model, tokenizer=tokenizer, limits=limits, observer=self._telemetry)

    async def _drain(self) -> None:
        _log.info("draining", queue_requests=self._engine.queue_requests if self._engine else 0)
        if self.loading is not None:
            self.loading.cancel()
            await asyncio.wait([self.loading])
        if self._engine is not None:
            await self._engine.drain(self._settings.drain_seconds)
        if self._model is not None:
            self.hung = not await self._comes_back(self._model)
            self._model.shutdown(wait=False)
        if self._tokenizer is not None:
            self._tokenizer.shutdown(wait=False, cancel_futures=True)
        _log.info("drained")

    @staticmethod
    async def _comes_back(model: ModelThread) -> bool:
        """Whether the model thread has nothing left to do."""
        answer = asyncio.get_running_loop().run_in_executor(model, int)
        done, _ = await asyncio.wait([answer], timeout=_IDLE_SECONDS)
        answer.cancel()
        return bool(done)
