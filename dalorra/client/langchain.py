"""The prediction as a LangChain tool; and typed questions, see `langchain_decisions`.

```python
from dalorra.client.langchain import UncertainPredictTool

tool = UncertainPredictTool(base_url="http://localhost:8000", api_key="…")
agent = create_agent(model, tools=[tool])
```

Needs the `langchain` extra; no torch, no server code.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from langchain_core.tools import BaseTool, ToolException
from langchain_core.tools.base import ArgsSchema
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
)

from dalorra.client import (
    BusyError,
    ClientError,
    Info,
    Prediction,
    RequestError,
    UnauthorizedError,
)
from dalorra.client import InvalidInputError as _InvalidInputError
from dalorra.client._connected import Connected
from dalorra.client.langchain_decisions import DalorraDecisionModel, unaccepted
from dalorra.client.tool import TOOL_NAME, field_description, sentence, tool_description, tool_name

__all__ = ["DalorraDecisionModel", "UncertainPredictTool", "arguments_model", "unaccepted"]


class UncertainPredictTool(Connected, BaseTool):
    """Asks a DALorRA server; the model reads a sentence, the program gets the whole prediction.

    The content of its answer is one sentence with the label and what to do with it, the artifact
    is the prediction as a dict. What the model can mend (an input that does not fit, a busy
    server) reaches it as a tool error that says how.

    Args:
        base_url: address of the server.
        api_key: bearer key, if the server wants one.
        timeout: seconds for one attempt.
        retries: what to do when the server is busy.
        adapter: which one answers; the server's default if none is named.
        info: what the server serves; asked for when left out, which blocks. In a coroutine, pass
            `await AsyncClient(…).info()`.

    Raises:
        ClientError: `info` was left out and the server did not answer.
    """

    name: str = TOOL_NAME
    description: str = ""
    args_schema: ArgsSchema | None = None
    response_format: Literal["content", "content_and_artifact"] = "content_and_artifact"
    handle_tool_error: Any = True
    handle_validation_error: Any = None

    adapter: str | None = None
    info: Info | None = None

    def model_post_init(self, context: Any, /) -> None:
        """Learns from the server what the tool's arguments are."""
        super().model_post_init(context)
        info = self.info or self._client.info(self.adapter)
        self.info = info
        if self.name == TOOL_NAME:
            self.name = tool_name(self.adapter)
        self.description = self.description or tool_description(info.adapter, info.labels)
        if self.args_schema is None:
            self.args_schema = arguments_model(info.fields)
        if self.handle_validation_error is None:
            self.handle_validation_error = partial(_argument_advice, info.fields)

    def _run(self, **values: str) -> tuple[str, dict[str, Any]]:
        try:
            return _answer(self._client.predict(values, adapter=self.adapter))
        except ClientError as error:
            raise ToolException(_advice(error)) from error

    async def _arun(self, **values: str) -> tuple[str, dict[str, Any]]:
        try:
            return _answer(await self._async_client().predict(values, adapter=self.adapter))
        except ClientError as error:
            raise ToolException(_advice(error)) from error


def arguments_model(fields: tuple[str, ...]) -> type[BaseModel]:
    """The arguments of the tool: one text for each field of the adapter's template."""
    arguments: dict[str, Any] = {
        name: (str, Field(min_length=1, description=field_description(name))) for name in fields
    }
    return create_model("PredictInput", __config__=ConfigDict(extra="forbid"), **arguments)


def _argument_advice(fields: tuple[str, ...], error: ValidationError) -> str:
    """Which arguments are wrong, and which to send."""
    wrong = "; ".join(
        f"{'.'.join(map(str, fault['loc']))}: {fault['msg'][:1].lower()}{fault['msg'][1:]}"
        for fault in error.errors(include_url=False)
    )
    return f"The arguments do not fit ({wrong}): send {', '.join(fields)}, each as plain text."


def _answer(prediction: Prediction) -> tuple[str, dict[str, Any]]:
    return sentence(prediction), prediction.model_dump(mode="json", exclude_unset=True)


def _advice(error: ClientError) -> str:
    """What went wrong and what the model can do about it."""
    if isinstance(error, _InvalidInputError):
        return f"The input was not accepted: {error}. Change it accordingly and call again."
    if isinstance(error, BusyError):
        wait = f"in {error.retry_after:.0f} s" if error.retry_after else "in a moment"
        return f"The model is busy ({error}). Call again {wait}, with the same input."
    request = f" (request {error.request_id})" if error.request_id else ""
    if isinstance(error, UnauthorizedError) or not isinstance(error, RequestError):
        return f"No prediction could be had: {error}{request}. Go on without it, and say so."
    return f"The request was refused: {error}{request}. Calling again will not help."
