"""The event that ends a broken stream. Errors before a stream look as in every operation of the vendor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.formats.documents import write_object
from services.formats.openai_chat.errors import error_object


def error_event(
    *,
    type: str,
    code: str,
    message: str,
    param: str | None = None,
    request_id: str = "",
    extra: Mapping[str, Any] | None = None,
    sequence_number: int | None = None,
) -> bytes:
    """Return the event that ends a broken stream; `extra` rides in it as `omnihub`.

    The facts stand flat, as the contract of the format says, and inside `error`, where the vendor's own
    servers and clients have them too: without the latter the Python client takes the event for content.
    """
    document: dict[str, Any] = {"type": "error", "code": code, "message": message, "param": param}
    if sequence_number is not None:
        document["sequence_number"] = sequence_number
    nested = error_object(
        type=type, code=code, message=message, param=param, request_id=request_id, extra=extra
    )
    return b"event: error\ndata: %b\n\n" % write_object({**document, **nested})
