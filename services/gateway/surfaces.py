"""The foreign surfaces, each a set of functions of its wire format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import Usage, WireFormat
from omnihub.router.v1.router_service_pb2 import RateLimit

from services.common.rpc import RpcError
from services.formats import anthropic_messages, openai_chat, openai_responses
from services.formats.facts import Facts
from services.gateway.rate_limits import anthropic_headers, openai_headers


@dataclass(frozen=True, slots=True)
class Surface:
    """How one wire format is read and written."""

    wire_format: WireFormat.ValueType
    forwarded_headers: tuple[str, ...]
    """Headers of the caller that belong to the format."""
    read_facts: Callable[[bytes], Facts]
    write_response: Callable[..., bytes]
    stream_writer: Callable[..., Any]
    close_raw_stream: Callable[[Sequence[bytes], Mapping[str, Any] | None, Usage | None], bytes]
    write_stream_error: Callable[..., bytes]
    write_error: Callable[..., bytes]
    error_type: Callable[[RpcError], str]
    echo: Callable[[bytes], dict[str, Any]] = lambda body: {}
    """What write_response and stream_writer want to know of the request."""
    rate_limit_headers: Callable[[Iterable[RateLimit]], list[tuple[bytes, bytes]]] = openai_headers
    """How the format tells what limits per minute leave."""
    history: Callable[[], Any] | None = None
    """Keeps what a raw stream has said, for formats whose writer has to know it to go on."""

    def error_words(self, error: RpcError, request_id: str) -> dict[str, Any]:
        """Return what an error of this format says."""
        return {
            "type": self.error_type(error),
            "code": error.metadata.get("provider_code") or error.row.openai_code,
            "message": error.message,
            "param": error.violations[0].field if error.violations else error.metadata.get("param") or None,
            "request_id": request_id,
        }


OPENAI = Surface(
    wire_format=WireFormat.WIRE_FORMAT_OPENAI_CHAT,
    forwarded_headers=(),
    read_facts=openai_chat.read_facts,
    write_response=openai_chat.write_response,
    stream_writer=openai_chat.StreamWriter,
    close_raw_stream=openai_chat.close_raw_stream,
    write_stream_error=openai_chat.write_stream_error,
    write_error=openai_chat.write_error,
    error_type=lambda error: error.row.openai_type,
)

ANTHROPIC = Surface(
    wire_format=WireFormat.WIRE_FORMAT_ANTHROPIC_MESSAGES,
    forwarded_headers=("anthropic-version", "anthropic-beta"),
    read_facts=anthropic_messages.read_facts,
    write_response=anthropic_messages.write_response,
    stream_writer=anthropic_messages.StreamWriter,
    close_raw_stream=anthropic_messages.close_raw_stream,
    write_stream_error=anthropic_messages.write_stream_error,
    write_error=anthropic_messages.write_error,
    error_type=lambda error: error.row.anthropic_type,
    rate_limit_headers=anthropic_headers,
)

RESPONSES = Surface(
    wire_format=WireFormat.WIRE_FORMAT_OPENAI_RESPONSES,
    forwarded_headers=("openai-beta",),
    read_facts=openai_responses.read_facts,
    write_response=openai_responses.write_response,
    stream_writer=openai_responses.StreamWriter,
    close_raw_stream=openai_responses.close_raw_stream,
    write_stream_error=openai_responses.write_stream_error,
    write_error=openai_responses.write_error,
    error_type=lambda error: error.row.openai_type,
    echo=lambda body: {"echo": openai_responses.read_echo(body)},
    history=openai_responses.History,
)


class _Native(Surface):
    """The platform's own shape of errors; its answers are proto JSON."""

    def error_words(self, error: RpcError, request_id: str) -> dict[str, Any]:
        """Return what an error of this format says."""
        return {"document": error.to_body(request_id)}


def _write_document(document: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(document)


NATIVE = _Native(
    wire_format=WireFormat.WIRE_FORMAT_UNSPECIFIED,
    forwarded_headers=(),
    read_facts=openai_chat.read_facts,
    write_response=openai_chat.write_response,
    stream_writer=openai_chat.StreamWriter,
    close_raw_stream=openai_chat.close_raw_stream,
    write_stream_error=openai_chat.write_stream_error,
    write_error=_write_document,
    error_type=lambda error: error.reason,
)
