"""POST /v1/embeddings."""

from __future__ import annotations

import base64
import struct
from typing import Any

import msgspec
from omnihub.router.v1 import router_service_pb2 as pb
from omnihub.router.v1.router_service_api import RouterService

from services.common.log import RequestEvent
from services.common.rpc import Call
from services.formats.documents import from_decode_error
from services.formats.errors import invalid
from services.gateway.chat import checked_model, is_strict, note, outcome_headers
from services.gateway.exchange import Exchange, attribution
from services.gateway.rate_limits import openai_headers


class _Body(msgspec.Struct):
    model: str = ""
    input: str | list[str | int | list[int]] | None = None
    encoding_format: str = "float"
    dimensions: int | None = None


_decoder = msgspec.json.Decoder(_Body)


class EmbeddingsEndpoint:
    """Turns texts into vectors, in OpenAI's shape."""

    def __init__(self, router: RouterService, body_limit: int) -> None:
        self._router = router
        self._body_limit = body_limit

    async def serve(self, exchange: Exchange, call: Call, event: RequestEvent) -> None:
        """Serve one authenticated request."""
        body = await exchange.read_body(self._body_limit)
        read = _read(body)
        event.fields["model"] = read.model
        agent_id, run_id = attribution(exchange.headers)
        request = pb.EmbedRequest(
            model=read.model,
            raw_body=body,
            strict=is_strict(exchange.headers),
            agent_id=agent_id,
            run_id=run_id,
        )
        answer = await self._router.embed(request, call)
        note(event, answer.outcome)
        document = answer.raw_body if answer.HasField("raw_body") else _write(answer, read)
        limits = openai_headers(answer.outcome.rate_limits)
        await exchange.respond(200, document, [*outcome_headers(answer.outcome), *limits])


def _read(body: bytes) -> _Body:
    try:
        read = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise from_decode_error(error) from None
    if not read.model:
        raise invalid("model", "name the model, for example one of GET /v1/models")
    checked_model(read.model)
    if not read.input:
        raise invalid("input", "send a text or a list of texts")
    if read.encoding_format not in ("float", "base64"):
        raise invalid("encoding_format", "expected float or base64")
    return read


def _write(answer: pb.EmbedResponse, read: _Body) -> bytes:
    def vector(values: Any) -> Any:
        if read.encoding_format == "base64":
            return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
        return list(values)

    data = [
        {"object": "embedding", "index": index, "embedding": vector(each.values)}
        for index, each in enumerate(answer.embeddings)
    ]
    tokens = answer.outcome.usage.input_total
    return msgspec.json.encode(
        {
            "object": "list",
            "data": data,
            "model": answer.outcome.model_used,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )
