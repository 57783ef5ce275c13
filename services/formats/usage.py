"""Usage as a provider reports it, when it can be believed."""

from __future__ import annotations

from typing import Any

from omnihub.common.v1.chat_pb2 import Usage

_MOST = 10**9


def reported(**counts: Any) -> Usage | None:
    """Return the usage of these counts, None when one is none: negative, or beyond any request.

    An answer is not lost for it: who gets None estimates, and says so.
    """
    try:
        return Usage(**counts)
    except ValueError:
        return None


def believable(count: int | None) -> int | None:
    """Return a count of tokens, None when there is none or it is no count of any request's."""
    return count if count is not None and 0 <= count <= _MOST else None
