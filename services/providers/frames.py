"""What cuts the bytes of a stream into frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

Event = tuple[bytes, bytes]
"""A frame's name and its data."""


class FrameError(Exception):
    """The bytes are not what the framing says. The message tells what is wrong."""

    def __init__(self, message: str, before: Sequence[Event] = ()) -> None:
        super().__init__(message)
        self.before = list(before)
        """Good frames that came in the same bytes."""


class FrameTooLargeError(Exception):
    """One frame exceeds the limit."""


class FrameParser(Protocol):
    """Takes bytes as they come. Holds no more than one frame of limited size."""

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the frames that `chunk` completes. Raises FrameError or FrameTooLargeError."""
        ...

    def whole(self, chunk: bytes) -> list[Event] | None:
        """Return the frames of a chunk that is easily seen to hold whole ones; else None. Changes nothing."""
        ...

    def close(self) -> list[Event]:
        """Return what the end of the stream completes."""
        ...
