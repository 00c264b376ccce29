"""The two clients: one blocks, one awaits. All they decide is in `Exchanges`."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from dalorra.client._answers import (
    Adapter,
    Answers,
    Feedback,
    Health,
    Info,
    Input,
    Prediction,
    Question,
    State,
)
from dalorra.client._exchange import Exchange, Exchanges, transport_error
from dalorra.client._retries import Retries

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT = httpx.Timeout(65.0, connect=5.0)  # above the 60 s after which a server gives up
DEFAULT_RETRIES = Retries()


def _http_options(
    base_url: str, api_key: str | None, timeout: float | httpx.Timeout
) -> dict[str, Any]:
    return {
        "base_url": base_url,
        "headers": {"Authorization": f"Bearer {api_key}"} if api_key else {},
        "timeout": timeout,
    }


class Client:
    """Asks a server, blocking. Keeps its connections open; threads may share it.

    Args:
        base_url: address of the server, with the path it is served under, if any.
        api_key: bearer key, if the server wants one.
        timeout: seconds for one attempt to connect, send or answer; httpx's type for each apart.
        retries: what to do when the server is busy.
        transport: in place of httpx's own, e.g. for tests.

    Every method raises a subclass of `ClientError` when it gets no answer.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float | httpx.Timeout = DEFAULT_TIMEOUT,
        retries: Retries = DEFAULT_RETRIES,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(**_http_options(base_url, api_key, timeout), transport=transport)
        self._exchanges = Exchanges(self._http, retries)

    def predict(
        self,
        value: Input,
        *,
        adapter: str | None = None,
        return_samples: bool = False,
        target_error: float | None = None,
        request_id: str | None = None,
    ) -> Prediction:
        """Answers one input.

        Args:
            value: text, or the template's fields by name.
            adapter: which one answers; the server's default if none is named.
            return_samples: adds `sample_probabilities` to the answer.
            target_error: error rate among accepted answers, when it should be lower than the one
                that the policy was calibrated for (`Info.policy.target_error`).
            request_id: up to 128 letters, digits, `.`, `_` and `-`, for the server's log.
        """
        options = adapter, return_samples, target_error, request_id
        return self._drive(self._exchanges.predict(value, *options))

    def predict_batch(
        self,
        inputs: Sequence[Input],
        *,
        adapter: str | None = None,
        return_samples: bool = False,
        target_error: float | None = None,
        request_id: str | None = None,
    ) -> list[Prediction]:
        """Answers several inputs in one request, order kept; all of them or none.

        Args:
            inputs: at most `Info.limits.max_batch_inputs`.
            adapter: see `predict`.
            return_samples: see `predict`.
            target_error: see `predict`.
            request_id: see `predict`.
        """
        options = adapter, return_samples, target_error, request_id
        return self._drive(self._exchanges.predict_batch(inputs, *options))

    def ask(
        self,
        state: State,
        questions: Mapping[str, Question],
        *,
        model: str | None = None,
        return_samples: bool = False,
        target_error: float | None = None,
        request_id: str | None = None,
    ) -> Answers:
        """Answers typed questions about a state; all of them or none.

        Args:
            state: text, or anything that JSON can say.
            questions: by names of your own, which change no answer.
            model: which adapter answers; the server's questions adapter if none is named.
            return_samples: adds `sample_probabilities` to each answer.
            target_error: see `predict`.
            request_id: see `predict`.
        """
        options = model, return_samples, target_error, request_id
        return self._drive(self._exchanges.ask(state, questions, *options))

    def feedback(self, request_id: str, label: str) -> Feedback:
        """Tells the server the truth about an earlier answer, once it is known.

        Args:
            request_id: `Prediction.request_id` of that answer.
            label: the true label.
        """
        return self._drive(self._exchanges.feedback(request_id, label))

    def info(self, adapter: str | None = None) -> Info:
        """What is served: the default adapter, or the named one."""
        return self._drive(self._exchanges.info(adapter))

    def adapters(self) -> list[Adapter]:
        """Every adapter that can be asked, the default first."""
        return self._drive(self._exchanges.adapters())

    def load_adapter(self, name: str, path: str) -> Adapter:
        """Loads an adapter, or replaces the one of that name, without a restart.

        Args:
            name: what requests will call it.
            path: its directory on the server, below one of its `adapter_roots`.

        Raises:
            AdapterRefusedError: it is damaged or does not fit; nothing has changed.
        """
        return self._drive(self._exchanges.load_adapter(name, path))

    def unload_adapter(self, name: str) -> list[Adapter]:
        """Unloads an adapter; returns what is left."""
        return self._drive(self._exchanges.unload_adapter(name))

    def health(self) -> Health:
        """Whether the server takes requests now; does not raise when it says no."""
        return self._drive(self._exchanges.health())

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _drive(self, exchange: Exchange[T]) -> T:
        response: httpx.Response | None = None
        while True:
            try:
                step = exchange.send(response)
            except StopIteration as finished:
                answer: T = finished.value
                return answer
            if isinstance(step, httpx.Request):
                try:
                    response = self._http.send(step)
                except httpx.RequestError as error:
                    raise transport_error(error) from error
            else:
                response = None
                time.sleep(step)


class AsyncClient:
    """Asks a server without blocking the event loop. See `Client`, whose methods it has.

    Belongs to the event loop that it was first used on.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float | httpx.Timeout = DEFAULT_TIMEOUT,
        retries: Retries = DEFAULT_RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(
            **_http_options(base_url, api_key, timeout), transport=transport
        )
        self._exchanges = Exchanges(self._http, retries)

    async def predict(
        self,
        value: Input,
        *,
        adapter: str | None = None,
        return_samples: bool = False,
        target_error: float | None = None,
        request_id: str | None = None,
    ) -> Prediction:
        """See `Client.predict`."""
        options = adapter, return_samples, target_error, request_id
        return await self._drive(self._exchanges.predict(value, *options))

    async def predict_batch(
        self,
        inputs: Sequence[Input],
        *,
        adapter: str | None = None,
        return_samples: bool = False,
        target_error: float | None = None,
        request_id: str | None = None,
    ) -> list[Prediction]:
        """See `Client.predict_batch`."""
        options = adapter, return_samples, target_error, request_id
        return await self._drive(self._exchanges.predict_batch(inputs, *options))

    async def ask(
        self,
        state: State,
        questions: Mapping[str, Question],
        *,
        model: str | None = None,
        return_samples: bool = False,
        target_error: float | None = None,
        request_id: str | None = None,
    ) -> Answers:
        """See `Client.ask`."""
        options = model, return_samples, target_error, request_id
        return await self._drive(self._exchanges.ask(state, questions, *options))

    async def feedback(self, request_id: str, label: str) -> Feedback:
        """See `Client.feedback`."""
        return await self._drive(self._exchanges.feedback(request_id, label))

    async def info(self, adapter: str | None = None) -> Info:
        """See `Client.info`."""
        return await self._drive(self._exchanges.info(adapter))

    async def adapters(self) -> list[Adapter]:
        """See `Client.adapters`."""
        return await self._drive(self._exchanges.adapters())

    async def load_adapter(self, name: str, path: str) -> Adapter:
        """See `Client.load_adapter`."""
        return await self._drive(self._exchanges.load_adapter(name, path))

    async def unload_adapter(self, name: str) -> list[Adapter]:
        """See `Client.unload_adapter`."""
        return await self._drive(self._exchanges.unload_adapter(name))

    async def health(self) -> Health:
        """See `Client.health`."""
        return await self._drive(self._exchanges.health())

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _drive(self, exchange: Exchange[T]) -> T:
        response: httpx.Response | None = None
        while True:
            try:
                step = exchange.send(response)
            except StopIteration as finished:
                answer: T = finished.value
                return answer
            if isinstance(step, httpx.Request):
                try:
                    response = await self._http.send(step)
                except httpx.RequestError as error:
                    raise transport_error(error) from error
            else:
                response = None
                await asyncio.sleep(step)
