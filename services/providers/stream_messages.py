"""From what a reader says of a provider's frames to the messages of ProviderService's streams."""

from __future__ import annotations

from collections.abc import Sequence

from omnihub.common.v1.stream_pb2 import PartDelta, PartStart, RawFrame
from omnihub.provider.v1 import provider_service_pb2 as pb

from services.formats.answers import Event, Progress, RawReader
from services.formats.errors import FormatError
from services.providers.frames import Event as Frame


def read_raw(reader: RawReader, events: Sequence[Frame]) -> tuple[bytes, str, FormatError | None]:
    """Return what is passed on of events that came together, its text, and what is wrong with the next."""
    if len(events) == 1:
        # Most come alone.
        name, data = events[0]
        try:
            return *reader.read(name, data), None
        except FormatError as error:
            return b"", "", error
    frames: list[bytes] = []
    texts: list[str] = []
    wrong: FormatError | None = None
    for name, data in events:
        try:
            frame, text = reader.read(name, data)
        except FormatError as error:
            wrong = error
            break  # What came before it in the same read is good.
        if reader.progress.error is not None:
            break
        frames.append(frame)
        texts.append(text)
    return b"".join(frames), "".join(texts), wrong


def fill_frame(frame: RawFrame, data: bytes, text: str, progress: Progress, output_chars: int) -> None:
    """Write frames in the caller's own format, with what others need to know about them."""
    frame.data, frame.text, frame.output_chars = data, text, output_chars
    # Most frames are text of a format without numbered parts: what is not so is set only where it is not so.
    if progress.thought:
        frame.thought = True
    if progress.beyond_text:
        frame.beyond_text = True
    if progress.parts:
        frame.parts = progress.parts
        frame.open_part = progress.open_part


def typed_message(event: Event) -> pb.StreamChatResponse:
    """Return an event of the normalised model."""
    message = pb.StreamChatResponse()
    if isinstance(event, PartDelta):
        message.part_delta.CopyFrom(event)
    elif isinstance(event, PartStart):
        message.part_start.CopyFrom(event)
    else:
        message.part_stop.CopyFrom(event)
    return message
