"""Server-sent events, parsed by hand: a general parser costs more than everything else in a stream."""

from __future__ import annotations

import re

from services.providers.frames import Event, FrameTooLargeError

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class SseParser:
    """Takes bytes as they come and returns whole events as (event name, data)."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        """The unfinished line."""
        self._size = 0
        """Bytes held: the unfinished line and the data of the unfinished event."""
        self._name = b""
        self._data: list[bytes] = []
        self._data_size = 0
        self._after_cr = False
        self._at_start = True

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that `chunk` completes. Raises FrameTooLargeError."""
        if not chunk:
            return []
        if not (self._pieces or self._data or self._at_start or self._after_cr) and chunk[-2:] == b"\n\n":
            events = _whole_frames(chunk)
            if events is not None:
                return events
        if self._after_cr and chunk[:1] == b"\n":
            chunk = chunk[1:]
        self._after_cr = chunk[-1:] == b"\r"
        if b"\n" not in chunk and b"\r" not in chunk:
            self._hold(chunk)
            self._pieces.append(chunk)
            return []
        lines = _LINE_END.split(b"".join([*self._pieces, chunk]) if self._pieces else chunk)
        self._pieces = []
        last = lines.pop()
        events = []
        for line in lines:
            self._line(line, events)
        self._size = self._data_size
        if last:
            self._hold(last)
            self._pieces.append(last)
        return events

    def close(self) -> list[Event]:
        """Return the event that the end of the stream leaves without its blank line, if any."""
        events: list[Event] = []
        if self._pieces:
            line = b"".join(self._pieces)
            self._pieces = []
            self._line(line, events)
        self._line(b"", events)
        return events

    def _hold(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._limit:
            raise FrameTooLargeError

    def _line(self, line: bytes, events: list[Event]) -> None:
        if self._at_start:
            line = line.removeprefix(_BOM)
            self._at_start = False
        if not line:
            if self._data:
                events.append((self._name, b"\n".join(self._data)))
                self._data, self._data_size = [], 0
            self._name = b""
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            # An empty line counts too, or a frame of them would have no end.
            self._data_size += len(value) + 1
            if self._data_size > self._limit:
                raise FrameTooLargeError
        elif name == b"event":
            self._name = value


def _whole_frames(chunk: bytes) -> list[Event] | None:
    """Return the events of a read that holds whole one-line frames and nothing else, else None."""
    if b"\r" in chunk:
        return None
    events = []
    for block in chunk[:-2].split(b"\n\n"):
        if block[:6] != b"data: " or b"\n" in block:
            return None
        events.append((b"", block[6:]))
    return events
