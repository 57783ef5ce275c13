"""Adapters that translate every body, and the wire that each speaks, for tests of what they share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omnihub.common.v1.chat_pb2 import ChatInput, Message, WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb

from tests.support import gemini_wire, ollama_wire
from tests.support.fault_server import Head, Send, Step, sse


@dataclass(frozen=True)
class Wire:
    """How one vendor answers."""

    content_type: str
    answer: dict[str, Any]
    chunks: Sequence[dict[str, Any]]
    """A stream: two chunks of thoughts, two of text, and the last."""
    tool_answer: dict[str, Any]
    tool_chunks: Sequence[dict[str, Any]]
    bad_frame: bytes
    half_frame: bytes
    large_frame: bytes
    """The start of a frame that has no end."""
    models: dict[str, Any]

    def frames(self, documents: Sequence[dict[str, Any]]) -> bytes:
        """Return documents as frames."""
        if self.content_type == "text/event-stream":
            return sse(*documents)
        return ollama_wire.lines(*documents)

    def stream(self, *pieces: bytes) -> list[Step]:
        """Return the script of a stream sent in these pieces."""
        return [Head(content_type=self.content_type), *map(Send, pieces)]


WIRES = {
    "gemini": Wire(
        content_type="text/event-stream",
        answer=gemini_wire.ANSWER,
        chunks=gemini_wire.CHUNKS,
        tool_answer=gemini_wire.TOOL_ANSWER,
        tool_chunks=gemini_wire.TOOL_CHUNKS,
        bad_frame=sse(b'{"candidates": [{"content": {"parts": ['),
        half_frame=b'data: {"candidates": [{"cont',
        large_frame=b"data: ",
        models={"models": [{"name": "models/gemini-x", "inputTokenLimit": 4096, "displayName": "X"}]},
    ),
    "ollama": Wire(
        content_type="application/x-ndjson",
        answer=ollama_wire.ANSWER,
        chunks=ollama_wire.LINES,
        tool_answer=ollama_wire.TOOL_ANSWER,
        tool_chunks=ollama_wire.TOOL_LINES,
        bad_frame=b'{"message": {"content": \n',
        half_frame=b'{"model": "x", "mess',
        large_frame=b"{",
        models={"models": [{"name": "llama-x", "model": "llama-x", "size": 1}]},
    ),
}


def typed(provider: str, **fields: Any) -> pb.Attempt:
    """Return an attempt with a typed conversation."""
    chat = ChatInput(messages=[Message(role="user", content="hi")], max_tokens=50)
    return pb.Attempt(provider=provider, model="real-model", chat=chat, **fields)


def openai_shaped(provider: str, body: dict[str, Any], **fields: Any) -> pb.Attempt:
    """Return an attempt with an OpenAI-shaped body."""
    return pb.Attempt(
        provider=provider,
        model="real-model",
        raw_body=json.dumps(body).encode(),
        wire_format=WireFormat.WIRE_FORMAT_OPENAI_CHAT,
        **fields,
    )
