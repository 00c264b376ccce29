"""Tools of the Model Context Protocol, over streamable HTTP at `/mcp`.

One for each adapter with labels of its own, because each has fields of its own; the default's has
the plain name. And one for typed questions, where some can be asked.
Stateless: every request stands alone, so any replica answers it. Built on the SDK's own low-level
server, because the tool's schema is that of the adapter, which is known only once it is loaded.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
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

from dalorra.client.tool import (
    ASK_DESCRIPTION,
    ASK_NAME,
    adapter_of,
    answer_sentence,
    parameters_schema,
    sentence,
    tool_description,
    tool_name,
)
from dalorra.errors import InputError
from service.api.answering import Answering, Reply, takes_questions
from service.api.callers import Caller, caller_of
from service.api.problems import INTERNAL, problem_of
from service.api.questions import TypedQuestions
from service.api.schemas import PredictOptions, PredictRequest, PredictResponse, ResponseBody
from service.api.strict_json import checked
from service.api.systemone import (
    ChoiceAnswer,
    NoulAnswer,
    ScoreAnswer,
    StateAndQuestions,
    SystemOneRequest,
    SystemOneResponse,
    TypedAnswer,
    answer,
)
from service.engine import Predictor
from service.errors import ServiceError
from service.lifecycle import Lifecycle
from service.telemetry import Outcome, Telemetry, package_version

PATH = "/mcp"

_log = structlog.get_logger("dalorra.access")
_OUTPUT_SCHEMA = PredictResponse.model_json_schema(mode="serialization")


class McpEndpoint:
    """The tools, and the ASGI endpoint that serves them.

    Args:
        lifecycle: knows the adapters, once they are loaded.
        answering: answers inputs.
        questions: answers typed questions.
        telemetry: counts calls of a tool like requests to /predict.
        max_body_bytes: longest request body.
        hosts: names that requests may have in `Host`, and the pages that ask as their origin; none:
            any. For a server without keys on the loopback address.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        answering: Answering,
        questions: TypedQuestions,
        telemetry: Telemetry,
        *,
        max_body_bytes: int,
        hosts: Sequence[str],
    ) -> None:
        self._lifecycle = lifecycle
        self._answering = answering
        self._questions = questions
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
        names = [f"{name}:*" for name in hosts] + list(hosts)
        self._manager = StreamableHTTPSessionManager(
            server,
            json_response=True,
            stateless=True,
            max_request_body_size=max_body_bytes,
            security_settings=TransportSecuritySettings(
                enable_dns_rebinding_protection=bool(hosts),
                allowed_hosts=names,
                allowed_origins=[f"http://{name}" for name in names],
            ),
        )
        # GET would be a stream of messages from the server, of which there are none, without end.
        self.route = Route(PATH, StreamableHTTPASGIApp(self._manager), methods=["POST"])

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
            asks = bool(self._questions.models.served)
        except ServiceError as error:
            raise MCPError(INTERNAL_ERROR, str(error)) from error
        named = [
            (tool_name(None), default),
            *((tool_name(one.card.adapter), one) for one in others),
        ]
        tools = [_tool(name, one) for name, one in named if not takes_questions(one)]
        return ListToolsResult(tools=[*tools, *([_ASK] if asks else [])])

    async def _call(
        self, context: ServerRequestContext[Any, Any], params: CallToolRequestParams
    ) -> CallToolResult:
        try:
            adapter = None if params.name == ASK_NAME else adapter_of(params.name)
        except ValueError as error:
            raise MCPError(INVALID_PARAMS, str(error)) from None
        caller = caller_of(context.request) if context.request else Caller("", "")
        started = time.perf_counter()
        self._telemetry.request_started()
        outcome, error_type, facts = Outcome.CANCELLED, None, dict[str, Any]()
        try:
            text, body, reply = await (
                self._ask(params.arguments, caller)
                if params.name == ASK_NAME
                else self._predict(params.arguments, caller, adapter)
            )
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
            return CallToolResult(
                content=[TextContent(type="text", text=text)],
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

    async def _predict(
        self, arguments: dict[str, Any] | None, caller: Caller, adapter: str | None
    ) -> tuple[str, ResponseBody, Reply]:
        options = PredictOptions(adapter=adapter)
        [body], reply = await self._answering.predict([_checked(arguments)], [caller], options)
        return sentence(body), body, reply

    async def _ask(
        self, arguments: dict[str, Any] | None, caller: Caller
    ) -> tuple[str, ResponseBody, Reply]:
        asked = checked(arguments or {}, SystemOneRequest)
        body, reply = await answer(self._questions, asked, caller)
        lines = [
            answer_sentence(name, _said(one), one.x_decision, one.x_reason)
            for name, one in body.answers.items()
        ]
        return "\n".join(lines), body, reply.reply


_ASK = Tool(
    name=ASK_NAME,
    title="Ask typed questions",
    description=ASK_DESCRIPTION,
    input_schema=StateAndQuestions.model_json_schema(),
    output_schema=SystemOneResponse.model_json_schema(mode="serialization"),
    annotations=ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False),
)


def _said(answered: TypedAnswer) -> str:
    """An answer in words."""
    match answered:
        case NoulAnswer():
            return f"yes with probability {answered.noul:.3g}"
        case ChoiceAnswer():
            probability = answered.probabilities[answered.choice]
            return f"{answered.choice} (probability {probability:.3g})"
        case ScoreAnswer():
            return f"{answered.score:.3g} on the levels 0 to {len(answered.legend) - 1}"


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
