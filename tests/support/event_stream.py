"""Frames of `application/vnd.amazon.eventstream`, as the service sends them or broken on purpose."""

from __future__ import annotations

import json
import struct
from binascii import crc32
from collections.abc import Sequence
from typing import Any

from tests.support.fault_server import Head, Send, Step

CONTENT_TYPE = "application/vnd.amazon.eventstream"


def encode(headers: dict[str, str], payload: bytes) -> bytes:
    """Return one frame with both checksums."""
    written = b""
    for name, value in headers.items():
        text = value.encode()
        written += bytes([len(name)]) + name.encode() + b"\x07" + struct.pack("!H", len(text)) + text
    prelude = struct.pack("!II", 16 + len(written) + len(payload), len(written))
    frame = prelude + struct.pack("!I", crc32(prelude)) + written + payload
    return frame + struct.pack("!I", crc32(frame))


def event(kind: str, payload: dict[str, Any] | bytes) -> bytes:
    """Return one event; like the service's own, its payload is padded."""
    data = payload if isinstance(payload, bytes) else json.dumps({**payload, "p": "abcdefgh"}).encode()
    return encode({":event-type": kind, ":content-type": "application/json", ":message-type": "event"}, data)


def exception(kind: str, payload: dict[str, Any]) -> bytes:
    """Return what the service sends in place of the rest of its answer."""
    headers = {":exception-type": kind, ":content-type": "application/json", ":message-type": "exception"}
    return encode(headers, json.dumps(payload).encode())


def error(code: str, message: str) -> bytes:
    """Return an error that is not modelled: it has no payload."""
    return encode({":error-code": code, ":error-message": message, ":message-type": "error"}, b"")


def frames(*events: tuple[str, dict[str, Any]]) -> bytes:
    """Return these events as they go over the wire."""
    return b"".join(event(kind, payload) for kind, payload in events)


def with_bad_message_checksum(frame: bytes) -> bytes:
    """Return the frame with one bit of its payload turned."""
    return frame[:-6] + bytes([frame[-6] ^ 1]) + frame[-5:]


def with_bad_prelude(frame: bytes) -> bytes:
    """Return the frame with another length, so that its prelude's checksum is wrong."""
    return bytes([0, 1]) + frame[2:]


def event_stream(*pieces: bytes) -> Sequence[Step]:
    """Return the script of a stream sent in these pieces."""
    return [
        Head(content_type=CONTENT_TYPE, headers={"x-amzn-RequestId": "aws-req-1"}),
        *map(Send, pieces),
    ]
