"""Server-sent events, parsed by hand: a general parser costs more than everything else in a stream."""

from __future__ import annotations

import re

from services.providers.frames import Event, FrameTooLargeError

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class SseParser:
    """Takes bytes as they come and returns whole events as (event name, data)."""

    __slots__ = ("_after_cr", "_at_start", "_data", "_data_size", "_limit", "_name", "_pieces", "_size")

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
        whole = self.whole(chunk)
        if whole is not None:
            return whole
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
        events: list[Event] = []
        for line in lines:
            self._line(line, events)
        self._size = self._data_size
        if last:
            self._hold(last)
            self._pieces.append(last)
        return events

    def whole(self, chunk: bytes) -> list[Event] | None:
        """Return the events of a chunk that is easily seen to hold whole ones; else None. Changes nothing."""
        if chunk[-2:] != b"\n\n" or self._pieces or self._data or self._at_start or self._after_cr:
            return None
        if self._name or b"\r" in chunk:
            return None
        if chunk[:6] == b"data: " and chunk.find(b"\n") == len(chunk) - 2:
            # Most come alone.
            return [(b"", chunk[6:-2])]
        return _whole_frames(chunk)

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
    """Return the events of a read that holds whole frames with one line of data each, else None."""
    events: list[Event] = []
    for block in chunk[:-2].split(b"\n\n"):
        name = b""
        if block[:7] == b"event: ":
            line, _, block = block.partition(b"\n")
            name = line[7:]
        if block[:6] != b"data: " or b"\n" in block:
            return None
        events.append((name, block[6:]))
    return events
