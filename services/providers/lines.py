"""Newline-delimited JSON: each line is a frame."""

from __future__ import annotations

from services.providers.frames import Event, FrameTooLargeError


class LineParser:
    """Takes bytes as they come and returns whole lines; empty ones mean nothing."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        """The unfinished line."""
        self._size = 0

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the lines that `chunk` completes. Raises FrameTooLargeError."""
        first, *rest = chunk.split(b"\n")
        self._hold(first)
        if not rest:
            return []
        lines = [b"".join(self._pieces), *rest[:-1]]
        self._pieces, self._size = [], 0
        self._hold(rest[-1])
        return [(b"", line) for line in lines if line.strip()]

    def whole(self, chunk: bytes) -> list[Event] | None:
        """Return None: what is framed so is never passed on as it is."""
        return None

    def close(self) -> list[Event]:
        """Return the line that the end of the stream leaves without its newline, if any."""
        line = b"".join(self._pieces)
        self._pieces, self._size = [], 0
        return [(b"", line)] if line.strip() else []

    def _hold(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._limit:
            raise FrameTooLargeError
        if piece:
            self._pieces.append(piece)
