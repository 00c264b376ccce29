"""What LangChain's objects need to ask a server, whatever they ask it."""

import asyncio
from typing import Any
from weakref import WeakKeyDictionary

from pydantic import BaseModel, Field, PrivateAttr, SecretStr

from dalorra.client._client import AsyncClient, Client
from dalorra.client._retries import Retries

DEFAULT_TIMEOUT = 65.0


class Connected(BaseModel):
    """Has a client, and one more for each event loop that it is asked on.

    Attributes:
        base_url: address of the server.
        api_key: bearer key, if the server wants one.
        timeout: seconds for one attempt.
        retries: what to do when the server is busy.
    """

    base_url: str = "http://127.0.0.1:8000"
    api_key: SecretStr | None = Field(default=None, exclude=True)
    timeout: float = DEFAULT_TIMEOUT
    retries: Retries = Retries()

    _client: Client = PrivateAttr()
    # A connection belongs to its event loop, and a program may have several, one after another.
    _async_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncClient] = PrivateAttr(
        default_factory=WeakKeyDictionary
    )

    def model_post_init(self, context: Any, /) -> None:
        """Makes the client."""
        super().model_post_init(context)
        self._client = Client(**self._connection())

    def _async_client(self) -> AsyncClient:
        """Of the running event loop."""
        loop = asyncio.get_running_loop()
        client = self._async_clients.get(loop)
        if client is None:
            client = self._async_clients[loop] = AsyncClient(**self._connection())
        return client

    def _connection(self) -> dict[str, Any]:
        return {
            "base_url": self.base_url,
            "api_key": self.api_key.get_secret_value() if self.api_key else None,
            "timeout": self.timeout,
            "retries": self.retries,
        }
