"""A whole message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omnihub.common.v1.chat_pb2 import Finish, Message, Usage

from services.formats.anthropic_messages.outcome import write_finish, write_usage
from services.formats.documents import write_object


def write_response(
    message: Message,
    finish: Finish,
    usage: Usage,
    response_id: str,
    model: str,
    created: int,
    extra: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the answer as a message; this format has no time of creation. `extra` rides as `omnihub`."""
    document: dict[str, Any] = {
        "id": response_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": write_finish(finish),
        "stop_sequence": finish.stop_sequence or None,
        "usage": write_usage(usage),
    }
    if extra:
        document["omnihub"] = dict(extra)
    return write_object(document)
