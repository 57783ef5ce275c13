"""POST /v1/messages/count_tokens, in Anthropic's shape."""

from __future__ import annotations

import msgspec
from omnihub.common.v1.chat_pb2 import WireFormat
from omnihub.router.v1 import router_service_pb2 as pb
from omnihub.router.v1.router_service_api import RouterService

from services.common.log import RequestEvent
from services.common.rpc import Call
from services.formats.documents import from_decode_error
from services.formats.errors import invalid
from services.formats.facts import check_messages
from services.gateway.chat import checked_model
from services.gateway.exchange import Exchange, header_value
from services.gateway.surfaces import ANTHROPIC


class _Body(msgspec.Struct):
    model: str = ""
    messages: msgspec.Raw = msgspec.Raw(b"")


_decoder = msgspec.json.Decoder(_Body)


class CountTokensEndpoint:
    """Counts the input tokens of a conversation; free of charge."""

    def __init__(self, router: RouterService, body_limit: int) -> None:
        self._router = router
        self._body_limit = body_limit

    async def serve(self, exchange: Exchange, call: Call, event: RequestEvent) -> None:
        """Serve one authenticated request."""
        body = await exchange.read_body(self._body_limit)
        model = _model_of(body)
        event.fields["model"] = model
        request = pb.CountTokensRequest(raw_body=body, wire_format=WireFormat.WIRE_FORMAT_ANTHROPIC_MESSAGES)
        request.chat.model = model
        for name in ANTHROPIC.forwarded_headers:
            if name in exchange.headers:
                request.options.headers[name] = exchange.headers[name]
        answer = await self._router.count_tokens(request, call)
        event.fields.update(model_used=answer.model_used, input_tokens=answer.input_tokens)
        headers = [
            (b"x-omnihub-model", header_value(answer.model_used)),
            (b"x-omnihub-provider", header_value(answer.provider)),
        ]
        if answer.estimated:
            headers.append((b"x-omnihub-estimated", b"true"))
        await exchange.respond(200, msgspec.json.encode({"input_tokens": answer.input_tokens}), headers)


def _model_of(body: bytes) -> str:
    """Return the model. Raises FormatError."""
    try:
        read = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise from_decode_error(error) from None
    if not read.model:
        raise invalid("model", "name the model, for example one of GET /v1/models")
    check_messages(read.messages)
    return checked_model(read.model)
