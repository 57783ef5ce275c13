"""GET, DELETE, cancel and input_items of /v1/responses/{response_id}."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any
from urllib.parse import parse_qsl, urlencode

from omnihub.router.v1 import response_service_pb2 as pb
from omnihub.router.v1.response_service_api import ResponseService

from services.common.log import RequestEvent
from services.common.rpc import Call, RpcError
from services.formats import openai_responses
from services.formats.errors import invalid
from services.gateway.chat import EVENT_STREAM, outcome_object
from services.gateway.exchange import Exchange, header_value

QUERY_LIMIT = 2048
# What comes with these requests is nothing, or an empty object.
BODY_LIMIT = 1024


class StoredResponseEndpoint:
    """Serves what the provider of a response keeps of it."""

    def __init__(self, responses: ResponseService) -> None:
        self._responses = responses

    async def get(self, exchange: Exchange, call: Call, event: RequestEvent) -> None:
        """Answer with the response, or with its events."""
        response_id, query, streamed = await _asked(exchange)
        if streamed:
            await self._stream(exchange, call, pb.StreamResponseRequest(response_id=response_id, query=query))
            return
        request = pb.GetResponseRequest(response_id=response_id, query=query)
        await _respond(exchange, (await self._responses.get_response(request, call)).document)

    async def delete(self, exchange: Exchange, call: Call, event: RequestEvent) -> None:
        """Delete it."""
        response_id, _, _ = await _asked(exchange)
        request = pb.DeleteResponseRequest(response_id=response_id)
        await _respond(exchange, (await self._responses.delete_response(request, call)).document)

    async def cancel(self, exchange: Exchange, call: Call, event: RequestEvent) -> None:
        """Stop what is made in the background."""
        response_id, _, _ = await _asked(exchange)
        request = pb.CancelResponseRequest(response_id=response_id)
        await _respond(exchange, (await self._responses.cancel_response(request, call)).document)

    async def input_items(self, exchange: Exchange, call: Call, event: RequestEvent) -> None:
        """List what it was asked."""
        response_id, query, _ = await _asked(exchange)
        request = pb.ListInputItemsRequest(response_id=response_id, query=query)
        await _respond(exchange, (await self._responses.list_input_items(request, call)).document)

    async def _stream(self, exchange: Exchange, call: Call, request: pb.StreamResponseRequest) -> None:
        stream: Any = self._responses.stream_response(request, call)
        async with aclosing(stream):
            async for message in stream:
                if not exchange.started:
                    await exchange.start(200, EVENT_STREAM)
                if message.HasField("raw_frame"):
                    await exchange.write(message.raw_frame.data, more=True)
                elif message.HasField("end"):
                    facts = outcome_object(message.end.outcome)
                    last = openai_responses.close_raw_stream(message.end.raw_tail.documents, facts)
                    await exchange.write(last, more=False)
        if not exchange.finished:
            raise RpcError("STREAM_TRUNCATED", "the stream ended without saying how; read the response again")


async def _asked(exchange: Exchange) -> tuple[str, str, bool]:
    """Return id, query without `stream`, and whether a stream is wanted. Raises FormatError.

    The body is read for the caller's leaving to be seen.
    """
    await exchange.read_body(BODY_LIMIT)
    pairs = parse_qsl(exchange.query.decode("latin-1"), keep_blank_values=True)
    streamed = dict(pairs).get("stream", "").lower() == "true"
    query = urlencode([(name, value) for name, value in pairs if name != "stream"])
    if len(query) > QUERY_LIMIT:
        raise invalid("query", f"expected at most {QUERY_LIMIT} characters")
    return str(exchange.path_params["response_id"]), query, streamed


async def _respond(exchange: Exchange, document: pb.StoredDocument) -> None:
    headers = [
        (b"x-omnihub-decision-id", header_value(document.decision_id)),
        (b"x-omnihub-model", header_value(document.model_used)),
        (b"x-omnihub-provider", header_value(document.provider)),
    ]
    if document.cost:
        headers.append((b"x-omnihub-cost", document.cost.encode()))
    await exchange.respond(200, document.raw_body, headers)
