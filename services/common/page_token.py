"""Opaque page tokens: where the next page of a keyset-ordered list starts. They carry no rights."""

from __future__ import annotations

import base64
import json

from services.common.rpc.errors import RpcError, Violation

LENGTH_LIMIT = 4096


def encode_page_token(*values: str | int) -> str:
    """Return the token of the page after the row that `values` identify."""
    text = json.dumps([str(value) for value in values], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_page_token(token: str, count: int) -> tuple[str, ...]:
    """Return the `count` values of a token. Raises RpcError INVALID_ARGUMENT when it is not one of ours."""
    try:
        padded = token.encode("ascii") + b"=" * (-len(token) % 4)
        values = json.loads(base64.b64decode(padded[:LENGTH_LIMIT], altchars=b"-_", validate=True))
    except (ValueError, RecursionError):
        values = None
    if (
        not isinstance(values, list)
        or len(values) != count
        # A database refuses the character NUL in text.
        or not all(isinstance(value, str) and "\0" not in value for value in values)
    ):
        description = "not a page token: send next_page_token of the page before, unchanged, or nothing"
        raise RpcError(
            "INVALID_ARGUMENT", description, violations=[Violation("page_token", description)]
        ) from None
    return tuple(values)
