"""What the caller of a stream has so far: the text, and where in it the stream stands."""

from __future__ import annotations

from io import StringIO

from omnihub.common.v1.stream_pb2 import PartStart, RawFrame
from omnihub.provider.v1.provider_service_pb2 import StreamChatResponse

from services.router.domain.seam import Position

# One token at least for a frame that carries nothing of its own.
FRAME_BYTES = 4
_RESUMABLE_PARTS = frozenset({"text", "reasoning"})
_RESUMABLE_DELTAS = frozenset({"text", "reasoning", "signature", "citations_json", "citation", "logprobs"})


class Transcript:
    """Takes in every event that goes to the caller. Cheap: this runs for each of them."""

    __slots__ = (
        "_beyond_text",
        "_frame",
        "_gone_on",
        "_open",
        "_parts",
        "_text",
        "attempt_bytes",
        "produced_bytes",
    )

    def __init__(self) -> None:
        self.produced_bytes = 0
        """Size of all that was produced, about."""
        self.attempt_bytes = 0
        """The same, of the model that speaks now."""
        self.restart()

    def restart(self) -> None:
        """Forget what the caller has been told to forget."""
        self._text = StringIO()
        self._frame: RawFrame | None = None
        self._parts = 0
        self._open: tuple[int, str] | None = None
        self._beyond_text = False
        self._gone_on = False

    def next_attempt(self, produced_bytes: int = 0) -> None:
        """Begin to count for another model, which has produced this much that the caller does not see.

        Its events are typed, and go on where the stream stands.
        """
        self.attempt_bytes = produced_bytes
        position = self.position
        self._parts = position.parts
        if position.open_part is not None:
            self._open = (position.open_part, "text" if position.open_text else "reasoning")
        self._gone_on = True

    def add(self, event: StreamChatResponse) -> None:
        """Take in one event."""
        if event.HasField("raw_frame"):
            self.add_frame(event.raw_frame)
            return
        if event.HasField("part_delta"):
            delta = event.part_delta
            text = delta.text
            if text:
                self._text.write(text)
                size = len(text.encode())
            else:
                size = delta.ByteSize()
                if delta.WhichOneof("delta") not in _RESUMABLE_DELTAS:
                    self._beyond_text = True
        elif event.HasField("part_start"):
            size = self._start(event.part_start)
        else:
            size = 0
            if event.HasField("part_stop") and self._open and self._open[0] == event.part_stop.index:
                self._open = None
        self.produced_bytes += size
        self.attempt_bytes += size

    def add_frame(self, frame: RawFrame) -> None:
        """Take in frames of the caller's own format."""
        self._frame = frame
        text = frame.text
        size = frame.output_chars or (0 if text else FRAME_BYTES)
        if text:
            self._text.write(text)
            # A character beyond ASCII is more than one byte, and often more than one token.
            if not text.isascii():
                size = max(size, len(text.encode()))
            elif len(text) > size:
                size = len(text)
        self.produced_bytes += size
        self.attempt_bytes += size

    def _start(self, start: PartStart) -> int:
        kind = start.part.WhichOneof("kind") or "text"
        if kind not in _RESUMABLE_PARTS:
            self._beyond_text = True
        self._parts = max(self._parts, start.index + 1)
        self._open = (start.index, kind)
        self._text.write(start.part.text.text)
        return 0

    @property
    def raw(self) -> bool:
        """Tell whether the stream began in the caller's own format."""
        return self._frame is not None

    @property
    def text(self) -> str:
        """Return the text so far."""
        return self._text.getvalue()

    @property
    def beyond_text(self) -> bool:
        """Tell whether there is more than text and thoughts, which no other model can go on with."""
        return self._beyond_text or (self._frame is not None and self._frame.beyond_text)

    @property
    def position(self) -> Position:
        """Return where the stream stands."""
        parts, opened = self._parts, self._open
        if not self._gone_on and self._frame is not None and self._frame.parts:
            parts = self._frame.parts
            opened = (parts - 1, self._frame.open_part) if self._frame.open_part else None
        elif not parts and self._text.tell():
            # A stream that does not number its parts has one.
            parts, opened = 1, (0, "text")
        if opened is None:
            return Position(parts)
        return Position(parts, opened[0], opened[1] == "text")


def has_token(event: StreamChatResponse) -> bool:
    """Tell whether an event carries anything of an answer: before that, nothing has been promised."""
    if event.HasField("raw_frame"):
        frame = event.raw_frame
        return bool(frame.text or frame.thought or frame.beyond_text)
    if event.HasField("part_delta"):
        delta = event.part_delta.WhichOneof("delta")
        return delta is not None and bool(getattr(event.part_delta, delta))
    if event.HasField("part_start"):
        part = event.part_start.part
        match part.WhichOneof("kind"):
            case "text":
                return bool(part.text.text)
            case "reasoning":
                return bool(part.reasoning.text or part.reasoning.encrypted)
            case kind:
                return kind is not None
    return event.HasField("end")
