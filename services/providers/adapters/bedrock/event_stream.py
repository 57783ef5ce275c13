"""Frames of `application/vnd.amazon.eventstream`: cut here by their length, read by botocore."""

from __future__ import annotations

import struct
from binascii import crc32
from typing import Any

import msgspec
from botocore.eventstream import EventStreamBuffer, ParserError

from services.providers.frames import Event, FrameError, FrameTooLargeError

_PRELUDE = struct.Struct("!III")
# The prelude, and the checksum of the whole at the end.
_LEAST = _PRELUDE.size + 4
EXCEPTION = b"exception/"
ERROR = b"error/"


class EventStreamParser:
    """Takes bytes as they come and returns whole frames as (name, payload).

    The names of exceptions start with `exception/`, those of errors without a type with `error/`.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = bytearray()

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the frames that `chunk` completes. Raises FrameError or FrameTooLargeError."""
        held = self._held
        held += chunk
        events: list[Event] = []
        start = 0
        try:
            while size := self._size_of_frame(start):
                if len(held) - start < size:
                    break
                events.append(_read(bytes(held[start : start + size])))
                start += size
        except FrameError as error:
            error.before = events
            raise
        del held[:start]
        return events

    def whole(self, chunk: bytes) -> list[Event] | None:
        """Return None: what is framed so is never passed on as it is."""
        return None

    def close(self) -> list[Event]:
        """Return nothing: a frame without its end cannot be read."""
        return []

    def _size_of_frame(self, start: int) -> int:
        """Return the size of the frame that starts here; 0 while it is not known."""
        if len(self._held) - start < _PRELUDE.size:
            return 0
        size, headers, checksum = _PRELUDE.unpack_from(self._held, start)
        # A wrong length would have us wait for bytes that never come.
        if crc32(self._held[start : start + 8]) != checksum or size < _LEAST + headers:
            raise FrameError("the checksum of its prelude does not match")
        if size > self._limit:
            raise FrameTooLargeError
        return int(size)


def _read(frame: bytes) -> Event:
    buffer = EventStreamBuffer()
    buffer.add_data(frame)
    try:
        message = next(buffer)
    # A header of an unknown type, a text that is no UTF-8, a value that is cut short.
    except (ParserError, KeyError, UnicodeDecodeError, struct.error) as error:
        raise FrameError(str(error) or type(error).__name__) from None
    headers: dict[str, Any] = message.headers
    match headers.get(":message-type"):
        case "exception":
            return EXCEPTION + _word(headers, ":exception-type"), message.payload
        case "error":
            text = msgspec.json.encode({"message": str(headers.get(":error-message", ""))})
            return ERROR + _word(headers, ":error-code"), text
    return _word(headers, ":event-type"), message.payload


def _word(headers: dict[str, Any], name: str) -> bytes:
    return str(headers.get(name, "")).encode()
