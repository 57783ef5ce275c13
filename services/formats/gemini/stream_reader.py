"""The chunks of a stream to typed events. There is no end mark: a chunk that names its finish is the last."""

from __future__ import annotations

import msgspec
from omnihub.common.v1.chat_pb2 import Part, TokenLogprobs
from omnihub.common.v1.stream_pb2 import PartDelta, PartStart, PartStop

from services.formats.answers import Event, Progress
from services.formats.documents import from_decode_error
from services.formats.gemini.citations import Cited, citations_of
from services.formats.gemini.logprobs import read_logprobs
from services.formats.gemini.outcome import PromptFeedback, WireUsage, blocked, read_finish, read_usage
from services.formats.gemini.parts import CallIds, read_part


class _Content(msgspec.Struct):
    parts: list[msgspec.Raw] | None = None


class _Candidate(Cited, rename="camel"):
    index: int = 0
    content: _Content | None = None
    finish_reason: str | None = None
    logprobs_result: msgspec.Raw = msgspec.Raw(b"")


class Chunk(msgspec.Struct, rename="camel"):
    """One chunk, as far as the platform reads it."""

    candidates: list[_Candidate] | None = None
    usage_metadata: WireUsage | None = None
    model_version: str | None = None
    response_id: str | None = None
    prompt_feedback: PromptFeedback | None = None
    error: msgspec.Raw = msgspec.Raw(b"")


_decoder = msgspec.json.Decoder(Chunk)


class StreamReader:
    """Turns chunks into typed events. Only the first candidate is read."""

    def __init__(self, call_prefix: str) -> None:
        self.progress = Progress()
        self._ids = CallIds(call_prefix)
        self._next = 0
        self._open = ""
        """The kind of the part being written: text or reasoning."""
        self._called_tools = False
        self._written: list[str] = []
        self._cited: set[bytes] = set()

    def read(self, event: bytes, data: bytes) -> list[Event]:
        """Take one server-sent event. Raises FormatError when `data` is not a chunk."""
        try:
            chunk = _decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise from_decode_error(error) from None
        self._note(chunk)
        events: list[Event] = []
        for candidate in chunk.candidates or ():
            if candidate.index != 0:
                continue
            parts = candidate.content.parts if candidate.content is not None else None
            for index, raw in enumerate(parts or ()):
                self._part(read_part(raw, f"candidates[0].content.parts[{index}]", self._ids), events)
            if self._open == "text" and (tokens := read_logprobs(candidate.logprobs_result)):
                events.append(PartDelta(index=self._next, logprobs=TokenLogprobs(tokens=tokens)))
            self._cite(candidate, events)
            if candidate.finish_reason:
                self.progress.finish = read_finish(candidate.finish_reason, self._called_tools)
        return events

    def finish(self) -> list[Event]:
        """Return the end of the part that is still open."""
        events: list[Event] = []
        self._stop(events)
        return events

    def _note(self, chunk: Chunk) -> None:
        progress = self.progress
        if chunk.error and bytes(chunk.error) != b"null":
            progress.error = chunk.error
        block = blocked(chunk.prompt_feedback) if not chunk.candidates else None
        if block is not None:
            progress.error = msgspec.Raw(msgspec.json.encode(block))
        progress.model = progress.model or chunk.model_version or ""
        progress.response_id = progress.response_id or chunk.response_id or ""
        # Each chunk carries it; the last one is right.
        progress.usage = read_usage(chunk.usage_metadata) or progress.usage

    def _cite(self, candidate: Cited, events: list[Event]) -> None:
        """Name the sources of the text that is being written; a chunk may repeat those of earlier ones."""
        if self._open != "text" or not (candidate.grounding_metadata or candidate.citation_metadata):
            return
        for index, citation in citations_of(candidate, {self._next: "".join(self._written)}):
            known = citation.SerializeToString()
            if known not in self._cited:
                self._cited.add(known)
                events.append(PartDelta(index=index, citation=citation))

    def _part(self, part: Part, events: list[Event]) -> None:
        kind = part.WhichOneof("kind") or ""
        text = part.reasoning.text if kind == "reasoning" else part.text.text
        self.progress.output_chars += len(text)
        if kind in {"text", "reasoning"} and not part.extension_json:
            self._text(kind, part, text, events)
            return
        self._stop(events)
        self.progress.beyond_text = True
        delta = PartDelta(index=self._next)
        if kind == "tool_call":
            self._called_tools = True
            delta.arguments_json = part.tool_call.arguments_json or "{}"
            part.tool_call.arguments_json = ""
            self.progress.output_chars += len(part.tool_call.name) + len(delta.arguments_json)
        elif kind == "text" and text:
            delta.text = text
            part.text.text = ""
        events.append(PartStart(index=self._next, part=part))
        if delta.WhichOneof("delta"):
            events.append(delta)
        events.append(PartStop(index=self._next))
        self._next += 1

    def _text(self, kind: str, part: Part, text: str, events: list[Event]) -> None:
        signature = part.reasoning.signature
        if not text and not signature:
            return
        if self._open != kind:
            self._stop(events)
            started = Part()
            getattr(started, kind).SetInParent()
            events.append(PartStart(index=self._next, part=started))
            self._open = kind
            self._written, self._cited = [], set()
        if kind == "text":
            self._written.append(text)
            events.append(PartDelta(index=self._next, text=text))
        elif text:
            events.append(PartDelta(index=self._next, reasoning=text))
        if signature:
            events.append(PartDelta(index=self._next, signature=signature))

    def _stop(self, events: list[Event]) -> None:
        if self._open:
            events.append(PartStop(index=self._next))
            self._open = ""
            self._next += 1
