"""Heads of responses, as HTTP/1.1 writes them."""

from __future__ import annotations

import http
from collections.abc import Iterable
from typing import NamedTuple

from starlette.types import Scope

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"

_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in http.HTTPStatus
}
_WITHOUT_BODY = frozenset({204, 304})


class Head(NamedTuple):
    """A head, and what follows from it for the body."""

    data: bytes
    length: int | None
    """Bytes of the body; None when nobody knows beforehand, or where there is none."""
    chunked: bool
    silent: bool
    """No body follows, whatever the handler sends."""
    keep_alive: bool
    """The connection lives on after the response."""


def write_head(status: int, headers: Iterable[tuple[bytes, bytes]], scope: Scope, keep_alive: bool) -> Head:
    """Write a head. Raises ValueError for headers that would be something else on the wire."""
    pieces = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
    length, chunked, lines = None, False, 2
    for name, value in headers:
        pieces += (name, b": ", value, b"\r\n")
        lines += 1
        if name == b"content-length":
            length = int(value)
    silent = scope["method"] == "HEAD" or status in _WITHOUT_BODY
    if silent:
        length = None
    elif length is None and scope["http_version"] == "1.0":
        # The end of the connection is the end of the body.
        keep_alive = False
    elif length is None:
        chunked = True
        pieces.append(b"transfer-encoding: chunked\r\n")
        lines += 1
    if not keep_alive:
        pieces.append(b"connection: close\r\n")
        lines += 1
    pieces.append(b"\r\n")
    data = b"".join(pieces)
    # A line break within a value would be the end of a header, or of the head.
    if data.count(b"\n") != lines or data.count(b"\r") != lines or b"\0" in data:
        raise ValueError("a header holds a line break")
    return Head(data, length, chunked, silent, keep_alive)


def plain(status: int) -> bytes:
    """Return a whole response that says no more than its status, and is the last of a connection."""
    phrase = http.HTTPStatus(status).phrase.encode()
    return (
        _STATUS_LINES[status]
        + b"content-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(phrase)
        + phrase
    )
