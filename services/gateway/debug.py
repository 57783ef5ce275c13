"""POST /v1/router/debug: how a request would be routed. Takes the body of /v1/chat, or OpenAI's."""

from __future__ import annotations

from google.protobuf import json_format
from omnihub.common.v1.chat_pb2 import ChatInput, WireFormat
from omnihub.router.v1 import explain_pb2 as pb
from omnihub.router.v1.router_service_api import RouterService

from services.common.log import RequestEvent
from services.common.rpc import Call
from services.common.rpc.server import check_constraints
from services.formats import openai_chat
from services.gateway.chat import checked_model
from services.gateway.exchange import Exchange
from services.gateway.wishes import take_wishes


class DebugEndpoint:
    """Explains; asks no provider, costs nothing."""

    def __init__(self, router: RouterService, body_limit: int) -> None:
        self._router = router
        self._body_limit = body_limit

    async def serve(self, exchange: Exchange, call: Call, event: RequestEvent) -> None:
        """Serve one authenticated request."""
        body = await exchange.read_body(self._body_limit)
        request = _typed(body) or _openai(body)
        remaining = take_wishes(request.chat, exchange.headers, request.raw_body or b"{}")
        if request.raw_body:
            request.raw_body = remaining
        check_constraints(request, "chat")
        event.fields["model"] = request.chat.model
        answer = await self._router.explain_route(request, call)
        document = json_format.MessageToJson(
            answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=None
        )
        await exchange.respond(200, document.encode())


def _typed(body: bytes) -> pb.ExplainRouteRequest | None:
    """Read a body of /v1/chat; None for any other."""
    try:
        return pb.ExplainRouteRequest(chat=json_format.Parse(body, ChatInput()))
    except (json_format.ParseError, UnicodeDecodeError, RecursionError):
        return None


def _openai(body: bytes) -> pb.ExplainRouteRequest:
    """Read a body of /v1/chat/completions. Raises FormatError."""
    facts = openai_chat.read_facts(body)
    request = pb.ExplainRouteRequest(
        raw_body=body, wire_format=WireFormat.WIRE_FORMAT_OPENAI_CHAT, stream=facts.stream
    )
    request.chat.model = checked_model(facts.model)
    if facts.max_tokens is not None:
        request.chat.max_tokens = facts.max_tokens
    return request
