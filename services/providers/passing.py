"""Frames that are passed on as they are: most of them at once, in the turn of the event loop they come in."""

from __future__ import annotations

from collections.abc import Sequence

from omnihub.common.v1.stream_pb2 import RawFrame
from omnihub.provider.v1 import provider_service_pb2 as pb

from services.common.rpc.outlet import Outlet
from services.formats.answers import RawReader
from services.formats.errors import FormatError
from services.providers.frames import Event, FrameParser
from services.providers.http import Exchange
from services.providers.stream_messages import fill_frame, read_raw

Read = tuple[bytes, str, FormatError | None]
"""What is passed on of frames that came together, its text, and what is wrong with the next."""


class Passing:
    """Reads the frames of one answer for whoever yields them, and gives what it can to the outlet."""

    __slots__ = ("_counted", "_exchange", "_kept", "_kept_events", "_outlet", "_parser", "_reader")

    def __init__(self, exchange: Exchange, parser: FrameParser, reader: RawReader, outlet: Outlet) -> None:
        self._exchange = exchange
        self._parser = parser
        self._reader = reader
        self._outlet = outlet
        self._counted = 0
        self._kept: Read | None = None
        """Of frames that have been read, but could not be given away."""
        self._kept_events = 0

    def begin(self) -> None:
        """From now on give away what is plain. Until then a stream has not begun, and nothing is."""
        self._exchange.offer_to(self._accept)

    def read(self, events: Sequence[Event]) -> Read:
        """Take in frames that came together."""
        kept = self._kept
        if kept is None:
            return read_raw(self._reader, events)
        self._kept = None
        rest = events[self._kept_events :]
        if not rest or kept[2] is not None or self._reader.progress.error is not None:
            return kept
        more = read_raw(self._reader, rest)
        return kept[0] + more[0], kept[1] + more[1], more[2]

    def message(self, written: bytes, text: str) -> pb.StreamChatResponse:
        """Return frames as a message."""
        progress = self._reader.progress
        chars, self._counted = progress.output_chars - self._counted, progress.output_chars
        message = pb.StreamChatResponse()
        fill_frame(message.raw_frame, written, text, progress, chars)
        return message

    def _accept(self, chunk: bytes) -> bool:
        """Give away what has come. What is not plain, or not wanted now, waits to be read and yielded.

        This runs for every chunk: each function that is called from here is seen in what one costs.
        """
        give, exchange, reader = self._outlet.accept, self._exchange, self._reader
        if give is None or not exchange.got_token:
            return False
        events = self._parser.whole(chunk)
        if events is None:
            return False
        read = read_raw(reader, events)
        progress = reader.progress
        # Every end is told, and acted on, by who yields.
        if read[0] and read[2] is None and not (progress.error or progress.finish or progress.closed):
            chars = progress.output_chars
            frame = RawFrame()
            fill_frame(frame, read[0], read[1], progress, chars - self._counted)
            if give(frame):
                self._counted = chars
                exchange.touch()
                return True
        self._kept, self._kept_events = read, len(events)
        return False
