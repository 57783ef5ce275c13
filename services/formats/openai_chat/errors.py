"""Errors as OpenAI's clients read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.formats.documents import write_object


def error_object(
    *,
    type: str,
    code: str,
    message: str,
    param: str | None = None,
    request_id: str = "",
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the error document; `extra` rides in it as `omnihub`."""
    error: dict[str, Any] = {"message": message, "type": type, "param": param, "code": code}
    if request_id:
        error["request_id"] = request_id
    document: dict[str, Any] = {"error": error}
    if extra:
        document["omnihub"] = dict(extra)
    return document


def write_error(
    *, type: str, code: str, message: str, param: str | None = None, request_id: str = ""
) -> bytes:
    """Return the body of an HTTP error. `type` and `code` are the OpenAI words of the error table."""
    return write_object(
        error_object(type=type, code=code, message=message, param=param, request_id=request_id)
    )
