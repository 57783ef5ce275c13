"""What a stream of a provider may look like. The adapter of plugins and the conformance kit both apply it."""

from __future__ import annotations

from collections.abc import Mapping

from omnihub.common.v1.chat_pb2 import WireFormat
from omnihub.common.v1.stream_pb2 import PartDelta, PartStart, PartStop
from omnihub.provider.v1 import provider_service_pb2 as pb

from services.providers.domain.clauses import BreachError

# The deltas that each kind of part may have.
_DELTAS: Mapping[str, frozenset[str]] = {
    "text": frozenset({"text", "citations_json"}),
    "tool_call": frozenset({"arguments_json", "signature"}),
    "reasoning": frozenset({"reasoning", "signature"}),
    "refusal": frozenset({"refusal"}),
}


class StreamContract:
    """Judges the messages of one stream in their order. Raises BreachError at the first that is wrong."""

    def __init__(self, asked: WireFormat.ValueType = WireFormat.WIRE_FORMAT_UNSPECIFIED) -> None:
        self._asked = asked
        self._started = False
        self._raw = False
        self._kinds: dict[int, str] = {}
        self._open: set[int] = set()
        self.ended = False

    def accept(self, message: pb.StreamChatResponse) -> None:
        """Judge the next message."""
        event = message.WhichOneof("event")
        if event is None:
            raise BreachError("STREAM-10", "a message without an event")
        if self.ended:
            what = "a second `end`" if event == "end" else f"`{event}` after `end`"
            raise BreachError("STREAM-2", what)
        if (event == "start") == self._started:
            what = "a second `start`" if self._started else f"began with `{event}` instead of `start`"
            raise BreachError("STREAM-1", what)
        match event:
            case "start":
                self._start(message.start)
            case "raw_frame" | "part_start" | "part_delta" | "part_stop":
                self._check_mode(event)
        match event:
            case "part_start":
                self._start_part(message.part_start)
            case "part_delta":
                self._check_delta(message.part_delta)
            case "part_stop":
                self._stop_part(message.part_stop)
            case "end":
                self._end(message.end)

    def _start(self, start: pb.StreamStart) -> None:
        if start.wire_format and start.wire_format != self._asked:
            message = f"`start` names wire format {start.wire_format}, {self._asked} was asked for"
            raise BreachError("STREAM-7", message)
        self._started = True
        self._raw = bool(start.wire_format)

    def _check_mode(self, event: str) -> None:
        if (event == "raw_frame") != self._raw:
            named = "names their format" if self._raw else "names no format"
            raise BreachError("STREAM-7", f"`{event}` although `start` {named}")

    def _start_part(self, start: PartStart) -> None:
        if start.index in self._kinds:
            raise BreachError("STREAM-4", f"part {start.index} is started twice")
        kind = start.part.WhichOneof("kind")
        if kind is None:
            raise BreachError("STREAM-4", f"part {start.index} is started without saying what it is")
        self._kinds[start.index] = kind
        self._open.add(start.index)

    def _check_delta(self, delta: PartDelta) -> None:
        if delta.index not in self._open:
            state = "has been stopped" if delta.index in self._kinds else "was never started"
            raise BreachError("STREAM-4", f"a delta of part {delta.index}, which {state}")
        kind, piece = self._kinds[delta.index], delta.WhichOneof("delta")
        if piece is None or piece not in _DELTAS.get(kind, frozenset()):
            raise BreachError("STREAM-6", f"a delta of {piece or 'nothing'} in part {delta.index}, a {kind}")

    def _stop_part(self, stop: PartStop) -> None:
        if stop.index not in self._open:
            state = "has been stopped" if stop.index in self._kinds else "was never started"
            raise BreachError("STREAM-5", f"a stop of part {stop.index}, which {state}")
        self._open.discard(stop.index)

    def _end(self, end: pb.StreamEnd) -> None:
        self.ended = True
        if self._open:
            raise BreachError("STREAM-5", f"`end` while part {min(self._open)} is open")
        if not end.finish.reason:
            raise BreachError("STREAM-8", "`end` without the reason of its finish")

    def finish(self) -> None:
        """Judge a stream whose status is OK."""
        if not self.ended:
            raise BreachError("STREAM-3", "ended with status OK, but without `end`")
