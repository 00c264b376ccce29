"""The adapters that are served on the one base model, by name.

A new one takes its place in one step, once it is read, verified, checked and warmed up; whatever
goes wrong before that changes nothing. Requests are answered by the adapter that they were admitted
with, also when another has taken its name meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import structlog

from dalorra.errors import AdapterError, DalorraError
from service.engine import Predictor
from service.errors import DefaultAdapterError, TooManyAdaptersError, UnknownAdapterError
from service.policies import PolicyChanges, hand_made_policies

if TYPE_CHECKING:
    from pathlib import Path

    from dalorra.forward.llama.prefix_cache import PrefixCache

T = TypeVar("T")

_log = structlog.get_logger("dalorra.adapters")


class Base(Protocol):
    """The part of `dalorra.shared_base.SharedBase` that a server uses."""

    @property
    def prefix_cache(self) -> PrefixCache | None:
        """Shared by all adapters."""

    def read(self, path: Path | None, /) -> Any:
        """Reads and verifies a directory; on any thread."""

    def bind(self, adapter: Any, name: str | None, /) -> Predictor:
        """A predictor of what `read` returned, checked; on the model thread."""


class Watcher(Protocol):
    """Hears what is loaded and unloaded."""

    def adapter_loaded(self, predictor: Predictor, /) -> None:
        """It answers under its name from now on."""

    def adapter_unloaded(self, name: str, /) -> None:
        """Nothing answers under this name any more."""


class Loaded(NamedTuple):
    """An adapter that is served, and the one in whose place it is, if any."""

    predictor: Predictor
    replaced: Predictor | None


class Adapters:
    """Owner of the adapters; all methods run on the event loop.

    Args:
        base: makes predictors.
        model: the one thread that touches the model; batches run between the steps of a load.
        reader: threads that read files.
        limit: adapters at once.
        watchers: hear of each change.
    """

    def __init__(
        self,
        base: Base,
        *,
        model: Executor,
        reader: Executor,
        limit: int,
        watchers: Sequence[Watcher],
    ) -> None:
        self._base = base
        self._model = model
        self._reader = reader
        self._limit = limit
        self._watchers = watchers
        self._changing = asyncio.Lock()
        self._served: dict[str, Predictor] = {}

    @property
    def served(self) -> tuple[Predictor, ...]:
        """All of them, the default first."""
        return tuple(self._served.values())

    def find(self, name: str | None = None) -> Predictor:
        """The adapter of that name; the default, which was loaded first, if none is given.

        Raises:
            UnknownAdapterError: no adapter of that name is served.
        """
        if name is None:
            return self.served[0]
        if name not in self._served:
            known = ", ".join(map(repr, self._served))
            raise UnknownAdapterError(f"no adapter of that name is served: ask for {known}")
        return self._served[name]

    async def load(
        self, path: Path | None, name: str | None = None, *, by: str | None = None
    ) -> Loaded:
        """Serves the adapter in a directory, in place of the one that has its name, if any.

        Args:
            path: the directory; None: the bundled adapter.
            name: what it is served as; None: the adapter's own name.
            by: who asked for it, for the log.

        Raises:
            AdapterError: it is damaged, does not fit the base model, or fails its check.
            TooManyAdaptersError: there is no room for another name.
        """
        async with self._changing:
            if name not in self._served and len(self._served) >= self._limit:
                raise TooManyAdaptersError(
                    f"{len(self._served)} adapters are loaded, as many as max_adapters allows: "
                    "unload one first"
                )
            began = asyncio.get_running_loop().time()
            try:
                predictor = await self._prepare(path, name)
            except AdapterError as error:
                _log.warning("adapter_refused", adapter=name, administrator=by, reason=str(error))
                raise
            card = predictor.card
            before = self._served.get(card.adapter)
            # The swap, in one step: whoever is admitted from here on gets the new one.
            self._served[card.adapter] = predictor
            for watcher in self._watchers:
                watcher.adapter_loaded(predictor)
        _log.info(
            "adapter_loaded",
            adapter=card.adapter,
            adapter_digest=card.digest,
            replaced_digest=before.card.digest if before else None,
            policy_digest=predictor.policy.digest,
            policy_changes=list(PolicyChanges.between(before, predictor).policy) if before else [],
            path=str(path) if path else None,
            administrator=by,
            load_seconds=round(asyncio.get_running_loop().time() - began, 3),
        )
        _warn_of_policies(predictor)
        return Loaded(predictor, before)

    async def unload(self, name: str, *, by: str | None = None) -> None:
        """Stops serving an adapter; its requests that were admitted are still answered.

        Args:
            name: of an adapter that is not the default.
            by: who asked for it, for the log.

        Raises:
            UnknownAdapterError: no adapter of that name is served.
            DefaultAdapterError: it is the one that answers requests which name none.
        """
        async with self._changing:
            predictor = self.find(name)
            if predictor is self.find():
                raise DefaultAdapterError(
                    f"{name!r} is the default adapter: it can be replaced, but not unloaded"
                )
            del self._served[name]
            for watcher in self._watchers:
                watcher.adapter_unloaded(name)
        _log.info(
            "adapter_unloaded",
            adapter=name,
            adapter_digest=predictor.card.digest,
            administrator=by,
        )

    async def _prepare(self, path: Path | None, name: str | None) -> Predictor:
        adapter = await self._run(self._reader, self._base.read, path)
        predictor = await self._run(self._model, self._base.bind, adapter, name)
        for step in predictor.warm_up():
            await self._run(self._model, step)
        return predictor

    async def _run(self, thread: Executor, step: Callable[..., T], *args: Any) -> T:
        """One step of a load; whatever it raises, the adapter is at fault."""
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, step, *args)
        except DalorraError:
            raise
        except Exception as error:
            _log.error("adapter_failed", exc_info=error)
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise AdapterError(f"the adapter cannot be used: {reason}") from error


def _warn_of_policies(predictor: Predictor) -> None:
    """Says in the log where answers are accepted without a promise, or not at all."""
    name = predictor.card.adapter
    if policies := hand_made_policies(predictor):
        _log.warning("hand_made_policies", adapter=name, policies=policies)
    if predictor.policy.never_accepts:
        _log.warning("nothing_is_accepted", adapter=name, reason=predictor.policy.source)
