"""A whole chat completion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omnihub.common.v1.chat_pb2 import Finish, Message, Usage

from services.formats.documents import write_object
from services.formats.openai_chat.outcome import write_finish, write_usage


def write_response(
    message: Message,
    finish: Finish,
    usage: Usage,
    response_id: str,
    model: str,
    created: int,
    extra: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the answer as a chat completion; `created` in seconds since 1970, `extra` rides as `omnihub`."""
    choice = {"index": 0, "message": {}, "finish_reason": write_finish(finish)}
    document: dict[str, Any] = {
        "id": response_id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [choice],
        "usage": write_usage(usage),
    }
    if extra:
        document["omnihub"] = dict(extra)
    return write_object(document)
