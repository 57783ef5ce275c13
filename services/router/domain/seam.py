"""Where one model's stream goes on from another's: nothing of the text is lost, nothing comes twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from omnihub.common.v1.stream_pb2 import PartDelta, PartStart, PartStop

Event = PartStart | PartDelta | PartStop


class DivergedError(Exception):
    """The second answer does not begin with the text of the first."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a broken stream stands."""

    parts: int = 0
    """Parts begun: their indexes are taken."""
    open_part: int | None = None
    """Index of the part that has not ended."""
    open_text: bool = False
    """That part is text, so more text goes into it."""


class Overlap:
    """Text the caller has already."""

    def __init__(self, text: str, exact: bool) -> None:
        self._text = text
        self._exact = exact
        self._position = 0

    @property
    def pending(self) -> bool:
        """Tell whether the second answer still owes text that the caller has."""
        return self._exact and self._position < len(self._text)

    def feed(self, text: str) -> str:
        """Return what is new in `text`. Raises DivergedError when an exact overlap does not match."""
        left = len(self._text) - self._position
        if not left:
            return text
        piece = self._text[self._position : self._position + len(text)]
        if text.startswith(piece):
            self._position += len(piece)
            return text[len(piece) :]
        if self._exact:
            raise DivergedError
        self._position = len(self._text)
        return text[_common(piece, text) :]


def _common(one: str, other: str) -> int:
    """Return how many characters two texts begin with in common."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))


class Seam:
    """Rewrites the parts of the second stream, so that they go on where the first one broke."""

    def __init__(self, position: Position, overlap: Overlap) -> None:
        self._overlap = overlap
        self._parts = position.parts
        self._open = position.open_part
        self._open_text = position.open_text
        self._indexes: dict[int, int | None] = {}
        """Indexes of the second stream to those the caller sees; None for parts that are left out."""

    def rewrite(self, event: Event) -> Iterator[Event]:
        """Yield what the caller gets for one event. Raises DivergedError."""
        if isinstance(event, PartDelta):
            yield from self._delta(event)
        elif isinstance(event, PartStart):
            yield from self._start(event)
        else:
            index = self._indexes.get(event.index)
            if index is not None:
                self._open = None if index == self._open else self._open
                yield PartStop(index=index)

    def finish(self) -> Iterator[Event]:
        """Yield what is left to say when the second answer is complete. Raises DivergedError."""
        if self._overlap.pending:
            raise DivergedError
        yield from self._close()

    def _start(self, event: PartStart) -> Iterator[Event]:
        kind = event.part.WhichOneof("kind")
        if kind == "text":
            yield from self._text(event.index, event.part.text.text)
        elif not self._overlap.pending:
            yield from self._begin(event)
        elif kind == "reasoning":
            # Its place was before the text that the caller has already.
            self._indexes[event.index] = None
        else:
            raise DivergedError

    def _delta(self, event: PartDelta) -> Iterator[Event]:
        if event.HasField("text"):
            yield from self._text(event.index, event.text)
            return
        index = self._indexes.get(event.index)
        if index is not None:
            moved = PartDelta()
            moved.CopyFrom(event)
            moved.index = index
            yield moved

    def _text(self, part: int, text: str) -> Iterator[Event]:
        """Yield new text, in the part that is open or in one of its own."""
        new = self._overlap.feed(text)
        if not new:
            return
        index = self._indexes.get(part)
        if index is None and self._open is not None and self._open_text:
            index = self._indexes[part] = self._open
        elif index is None:
            start = PartStart(index=part)
            start.part.text.SetInParent()
            yield from self._begin(start)
            index = self._parts - 1
        yield PartDelta(index=index, text=new)

    def _begin(self, event: PartStart) -> Iterator[Event]:
        yield from self._close()
        self._indexes[event.index] = self._parts
        yield PartStart(index=self._parts, part=event.part)
        self._parts += 1

    def _close(self) -> Iterator[Event]:
        """Yield the end of the part the first stream left open."""
        if self._open is not None:
            yield PartStop(index=self._open)
            # Its end may still come from the second stream.
            for part, index in self._indexes.items():
                if index == self._open:
                    self._indexes[part] = None
            self._open = None
