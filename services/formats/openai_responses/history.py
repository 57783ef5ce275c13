"""What the caller of a raw response stream has: where another writer has to go on when it breaks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from services.formats.documents import Fields, read_object
from services.formats.errors import FormatError

# Frames are read when so many bytes have come, or when somebody asks: reading each as it comes would cost
# every stream for the few that break.
FOLD_BYTES = 32 * 1024
_NOTHING = msgspec.Raw(b"")


class _Event(msgspec.Struct):
    type: str = ""
    sequence_number: int = -1
    response: msgspec.Raw = _NOTHING
    item: msgspec.Raw = _NOTHING
    part: msgspec.Raw = _NOTHING
    annotation: msgspec.Raw = _NOTHING
    item_id: str = ""
    output_index: int = 0
    content_index: int = 0
    delta: Any = ""


class _Kind(msgspec.Struct):
    type: str = ""
    id: str = ""


_decoder = msgspec.json.Decoder(_Event)
_kind_decoder = msgspec.json.Decoder(_Kind)


@dataclass(slots=True)
class Piece:
    """A piece of content that has not ended."""

    index: int
    texts: list[str] = field(default_factory=list)
    annotations: list[Any] = field(default_factory=list)


@dataclass(slots=True)
class Item:
    """An item of the output."""

    identifier: str
    kind: str
    done: msgspec.Raw | None = None
    """The whole item, once it is complete."""
    pieces: list[msgspec.Raw] = field(default_factory=list)
    """Content, or summaries of a thought, that is complete."""
    open: Piece | None = None
    raw: bool = False
    """Its pieces are a thought as it was thought, not its summary."""


class History:
    """Takes in the frames of a stream that is passed on."""

    def __init__(self) -> None:
        self._frames: list[bytes] = []
        self._size = 0
        self._response: Fields = {}
        self._items: dict[int, Item] = {}
        self._sequence = 0

    def keep(self, frames: bytes) -> None:
        """Take in whole frames."""
        self._frames.append(frames)
        self._size += len(frames)
        if self._size > FOLD_BYTES:
            self._fold()

    @property
    def response(self) -> Fields:
        """Return the response as it was announced; empty when it was not."""
        self._fold()
        return self._response

    @property
    def sequence(self) -> int:
        """Return the number of the next event."""
        self._fold()
        return self._sequence

    @property
    def items(self) -> list[tuple[int, Item]]:
        """Return the items and their places in the output."""
        self._fold()
        return sorted(self._items.items())

    def _fold(self) -> None:
        frames, self._frames, self._size = b"".join(self._frames), [], 0
        for data in _documents(frames):
            try:
                self._take(_decoder.decode(data))
            except (msgspec.DecodeError, UnicodeDecodeError, FormatError):
                # Whoever passed it on had read it; what a later reader makes of it does not matter now.
                continue

    def _take(self, event: _Event) -> None:
        self._sequence = max(self._sequence, event.sequence_number + 1)
        match event.type:
            case "response.created" | "response.in_progress" | "response.queued":
                self._response = read_object(bytes(event.response))
            case "response.output_item.added":
                kind = _kind_decoder.decode(event.item)
                self._items[event.output_index] = Item(kind.id, kind.type)
            case "response.output_item.done":
                kind = _kind_decoder.decode(event.item)
                self._items[event.output_index] = Item(kind.id, kind.type, done=event.item)
            case "response.content_part.done" | "response.reasoning_summary_part.done":
                item = self._item(event, "message")
                item.pieces.append(event.part)
                item.open = None
            case "response.content_part.added" | "response.output_text.delta":
                self._more(self._item(event, "message"), event)
            case "response.reasoning_text.delta":
                item = self._item(event, "reasoning")
                item.raw = True
                self._more(item, event)
            case "response.reasoning_summary_part.added" | "response.reasoning_summary_text.delta":
                self._more(self._item(event, "reasoning"), event)
            case "response.output_text.annotation.added":
                piece = self._more(self._item(event, "message"), event)
                piece.annotations.append(event.annotation)

    def _item(self, event: _Event, kind: str) -> Item:
        """Return the item of an event. Some servers do not announce it."""
        return self._items.setdefault(event.output_index, Item(event.item_id, kind))

    def _more(self, item: Item, event: _Event) -> Piece:
        if item.open is None:
            item.open = Piece(len(item.pieces))
        if isinstance(event.delta, str) and event.delta:
            item.open.texts.append(event.delta)
        return item.open


def _documents(frames: bytes) -> Iterator[bytes]:
    for line in frames.splitlines():
        if line.startswith(b"data:"):
            yield line[5:].strip()
