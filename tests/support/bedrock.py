"""What the tests of Bedrock ask."""

from __future__ import annotations

import json
from typing import Any

import pytest
from omnihub.common.v1.chat_pb2 import ChatInput, Message, WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb

CLAUDE = "eu.anthropic.claude-x-20260101-v1:0"
TITAN = "amazon.titan-text-express-v1"
TITAN_EMBED = "amazon.titan-embed-text-v2:0"
OPENAI = WireFormat.WIRE_FORMAT_OPENAI_CHAT
ANTHROPIC = WireFormat.WIRE_FORMAT_ANTHROPIC_MESSAGES


def cells(*rows: int, adapter: str = "bedrock") -> list[pytest.MarkDecorator]:
    """Return the marks of cells of the adapter test matrix."""
    return [pytest.mark.matrix(row=row, adapter=adapter) for row in rows]


def cell(*rows: int, adapter: str = "bedrock") -> Any:
    """Mark the cells that a test fills."""

    def mark(test: Any) -> Any:
        for each in cells(*rows, adapter=adapter):
            test = each(test)
        return test

    return mark


def typed(model: str = CLAUDE, **fields: Any) -> pb.Attempt:
    chat_input = ChatInput(messages=[Message(role="user", content="hi")], max_tokens=50)
    return pb.Attempt(provider="bedrock", model=model, chat=chat_input, **fields)


def raw(body: dict[str, Any], wire_format: WireFormat.ValueType, **fields: Any) -> pb.Attempt:
    return pb.Attempt(
        provider="bedrock",
        model=CLAUDE,
        raw_body=json.dumps(body).encode(),
        wire_format=wire_format,
        **fields,
    )
