"""The prediction as a tool of the Model Context Protocol, over streamable HTTP at `/mcp`.

One tool for each adapter, because each has fields of its own; the default's has the plain name.
Stateless: every request stands alone, so any replica answers it. Built on the SDK's own low-level
server, because the tool's schema is that of the adapter, which is known only once it is loaded.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)
from pydantic import ValidationError
from starlette.routing import Route

from dalorra.client.tool import adapter_of, parameters_schema, sentence, tool_description, tool_name
from dalorra.errors import InputError
from service.api.answering import Answering
from service.api.problems import INTERNAL, problem_of
from service.api.routes import client_of
from service.api.schemas import PredictOptions, PredictRequest, PredictResponse
from service.engine import Predictor
from service.errors import ServiceError
from service.lifecycle import Lifecycle
from service.telemetry import Outcome, Telemetry, package_version

PATH = "/mcp"

_log = structlog.get_logger("dalorra.access")
_OUTPUT_SCHEMA = PredictResponse.model_json_schema(mode="serialization")
_LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")


class McpEndpoint:
    """The tool, and the ASGI endpoint that serves it.

    Args:
        lifecycle: knows the adapters, once they are loaded.
        answering: answers.
        telemetry: counts calls of the tool like requests to /predict.
        max_body_bytes: longest request body.
        local_only: refuses requests whose `Host` is not this machine. For a server without keys
            on the loopback address, which a web page could otherwise reach by DNS rebinding.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        answering: Answering,
        telemetry: Telemetry,
        *,
        max_body_bytes: int,
        local_only: bool,
    ) -> None:
        self._lifecycle = lifecycle
        self._answering = answering
        self._telemetry = telemetry
        server: Server[Any] = Server(
            "dalorra",
            version=package_version(),
            instructions="Ask before you rely on a judgement of your own: the answer says when "
            "not to believe it.",
            on_list_tools=self._list,
            on_call_tool=self._call,
            get_tool_input_schema=lambda _: None,  # no argument is passed on in a header
        )
        names = [f"{name}:*" for name in _LOCAL_NAMES] + list(_LOCAL_NAMES)
        self._manager = StreamableHTTPSessionManager(
            server,
            json_response=True,
            stateless=True,
            max_request_body_size=max_body_bytes,
            security_settings=TransportSecuritySettings(
                enable_dns_rebinding_protection=local_only,
                allowed_hosts=names,
                allowed_origins=[f"http://{name}" for name in names],
            ),
        )
        self.route = Route(PATH, StreamableHTTPASGIApp(self._manager))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serves inside this context, which can be entered once."""
        async with self._manager.run():
            yield

    async def _list(
        self, _context: ServerRequestContext[Any, Any], _params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        try:
            default, *others = self._lifecycle.adapters.served
        except ServiceError as error:
            raise MCPError(INTERNAL_ERROR, str(error)) from error
        named = [(tool_name(one.card.adapter), one) for one in others]
        tools = [_tool(*item) for item in [(tool_name(None), default), *named]]
        return ListToolsResult(tools=tools)

    async def _call(
        self, context: ServerRequestContext[Any, Any], params: CallToolRequestParams
    ) -> CallToolResult:
        try:
            adapter = adapter_of(params.name)
        except ValueError as error:
            raise MCPError(INVALID_PARAMS, str(error)) from None
        request = context.request
        request_id = request.state.request_id if request else ""
        client = client_of(request) if request else None
        started = time.perf_counter()
        self._telemetry.request_started()
        outcome, error_type, facts = Outcome.CANCELLED, None, dict[str, Any]()
        try:
            inputs = [_checked(params.arguments)]
            options = PredictOptions(adapter=adapter)
            reply = await self._answering.answer(inputs, [request_id], options, client=client)
        except Exception as error:  # noqa: BLE001 - the protocol wants it as a result
            problem = problem_of(error)
            outcome, error_type = problem.outcome, problem.error_type
            said = str(error)
            if problem is INTERNAL:
                _log.error("unhandled", exc_info=error)
                said = "the server made a mistake, which its log explains"
            return CallToolResult(
                content=[TextContent(type="text", text=f"{error_type}: {said}")], is_error=True
            )
        else:
            outcome, facts = Outcome.OK, reply.facts
            [body] = reply.bodies
            return CallToolResult(
                content=[TextContent(type="text", text=sentence(body))],
                structured_content=body.model_dump(mode="json", exclude_unset=True),
            )
        finally:
            seconds = time.perf_counter() - started
            self._telemetry.request_finished(outcome, error_type, seconds)
            _log.info(
                "tool_call",
                outcome=str(outcome),
                total_ms=round(1e3 * seconds, 3),
                **({"error_type": error_type} if error_type else {}),
                **facts,
            )


def _tool(name: str, predictor: Predictor) -> Tool:
    return Tool(
        name=name,
        title="Predict with uncertainty",
        description=tool_description(predictor.card.adapter, predictor.labels),
        input_schema=parameters_schema(predictor.fields),
        output_schema=_OUTPUT_SCHEMA,
        annotations=ToolAnnotations(
            read_only_hint=True, idempotent_hint=True, open_world_hint=False
        ),
    )


def _checked(arguments: dict[str, Any] | None) -> dict[str, str]:
    """The arguments as an input; the engine checks whether they fit the template.

    Raises:
        InputError: an argument is not text.
    """
    for name, value in (arguments or {}).items():
        if not isinstance(value, str):
            raise InputError(f"argument {name!r} is no text: send {name} as a string")
    try:
        value = PredictRequest(input=arguments or {}).input
    except ValidationError:
        raise InputError("every argument must be a string of valid Unicode") from None
    return value if isinstance(value, dict) else {}
