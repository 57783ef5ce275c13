"""Errors as Anthropic's clients read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.formats.documents import write_object


def error_object(
    *, type: str, message: str, request_id: str = "", extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the error document; `extra` rides in it as `omnihub`."""
    document: dict[str, Any] = {"type": "error", "error": {"type": type, "message": message}}
    if request_id:
        document["request_id"] = request_id
    if extra:
        document["omnihub"] = dict(extra)
    return document


def write_error(
    *, type: str, code: str = "", message: str, param: str | None = None, request_id: str = ""
) -> bytes:
    """Return the body of an HTTP error. `type` is Anthropic's word; this format has no code and no param."""
    return write_object(error_object(type=type, message=message, request_id=request_id))
