"""Typed events to the events of a response stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import Citation, Finish, Part, Usage
from omnihub.common.v1.stream_pb2 import PartDelta, PartStart, PartStop

from services.formats.documents import read_object, splice, write_object
from services.formats.openai_chat.logprobs import write_logprobs
from services.formats.openai_responses.errors import error_event
from services.formats.openai_responses.history import History, Item
from services.formats.openai_responses.items import call_item, reasoning_item
from services.formats.openai_responses.outcome import write_finish, write_usage
from services.formats.openai_responses.parts import ITEM
from services.formats.openai_responses.response import (
    item_id,
    message_item,
    refusal_piece,
    skeleton,
    text_piece,
    write_annotations,
)

_EVENTS = {
    "completed": "response.completed",
    "incomplete": "response.incomplete",
    "failed": "response.failed",
}


@dataclass(slots=True)
class _Message:
    """The message that texts and refusals are written into."""

    identifier: str
    output_index: int
    content: list[Any] = field(default_factory=list)
    open: int = 0
    """Pieces of content that are not complete."""


@dataclass(slots=True)
class _Open:
    """A part that is being written."""

    kind: str
    part: Part
    where: dict[str, Any]
    """What its events say of their place."""
    message: _Message | None = None
    pieces: list[str] = field(default_factory=list)
    announced: bool = False
    """A thought's first text has come."""
    before: list[Any] = field(default_factory=list)
    """Pieces of a thought that are complete."""
    citations: list[Citation] = field(default_factory=list)
    annotations: list[Any] = field(default_factory=list)
    """What has been said about a text before the stream broke."""
    logprobs: list[Any] = field(default_factory=list)


class StreamWriter:
    """Writes one answer as server-sent events. Each method returns the bytes to send, perhaps none."""

    def __init__(
        self,
        model: str,
        response_id: str,
        created: int,
        include_usage: bool,
        echo: Mapping[str, msgspec.Raw] | None = None,
    ) -> None:
        self._response = skeleton(response_id, model, created, echo)
        self._sequence = 0
        self._output: list[Any] = []
        self._parts: dict[int, _Open] = {}
        self._message: _Message | None = None

    def set_model(self, model: str) -> None:
        """Name another model; the last event says who really spoke."""
        self._response["model"] = model

    def resume(self, parts: int, history: History) -> None:
        """Go on with a stream that began in this format: `parts` parts, the last of which may be open."""
        for name, raw in history.response.items():
            self._response[name] = raw
        if isinstance(raw_id := self._response["id"], msgspec.Raw):
            self._response["id"] = msgspec.json.decode(raw_id)
        # The provider that was to keep it has broken off.
        self._response["store"] = False
        self._sequence = history.sequence
        for index, item in history.items:
            self._output.extend([None] * (index + 1 - len(self._output)))
            self._output[index] = item.done
            if item.done is None:
                self._resume_item(parts - 1, index, item)

    def _resume_item(self, part_index: int, index: int, item: Item) -> None:
        """Take over an item that is not complete."""
        identifier = item.identifier or item_id("item", self._response["id"], index)
        where: dict[str, Any] = {"item_id": identifier, "output_index": index}
        piece = item.open
        opened = _Open(item.kind, Part(), where, pieces=[] if piece is None else piece.texts)
        if item.kind == "message":
            self._message = _Message(identifier, index, list(item.pieces))
            if piece is None:
                return
            opened.kind, opened.message, opened.annotations = "text", self._message, piece.annotations
            self._message.content.append(None)
            self._message.open = 1
            where["content_index"] = piece.index
        elif item.raw:
            opened.kind, opened.before = "raw_reasoning", list(item.pieces)
            where["content_index"] = len(item.pieces)
        else:
            opened.before = list(item.pieces)
            opened.announced = piece is not None
            if piece is not None:
                where["summary_index"] = piece.index
        self._parts[part_index] = opened

    def _event(self, kind: str, **fields: Any) -> bytes:
        document = {"type": kind, **fields, "sequence_number": self._sequence}
        self._sequence += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), write_object(document))

    def start(self) -> bytes:
        """Return the first events: the response without output."""
        created = self._event("response.created", response=self._response)
        return created + self._event("response.in_progress", response=self._response)

    def _place(self, prefix: str, item: dict[str, Any] | None) -> tuple[str, int]:
        """Take the next place in the output, and return id and index of what stands there."""
        index = len(self._output)
        self._output.append(item)
        return item_id(prefix, self._response["id"], index), index

    def part_start(self, event: PartStart) -> bytes:
        """Return the start of an item or of a piece of content, and what it already holds."""
        part = event.part
        kind = part.WhichOneof("kind") or ""
        match kind:
            case "text" | "refusal":
                return self._content_start(event.index, kind, part)
            case "tool_call":
                closed = self._close_idle()
                identifier, index = self._place("fc", None)
                where = {"item_id": identifier, "output_index": index}
                opened = self._parts[event.index] = _Open(kind, part, where)
                item = {
                    "id": identifier,
                    "status": "in_progress",
                    **call_item(part.tool_call),
                    "arguments": "",
                }
                added = self._event("response.output_item.added", output_index=index, item=item)
                return closed + added + self._more(opened, part.tool_call.arguments_json)
            case "reasoning":
                closed = self._close_idle()
                identifier, index = self._place("rs", None)
                where = {"item_id": identifier, "output_index": index}
                opened = self._parts[event.index] = _Open(kind, part, where)
                item = {"id": identifier, "type": "reasoning", "summary": []}
                added = self._event("response.output_item.added", output_index=index, item=item)
                return closed + added + self._more(opened, part.reasoning.text)
            case "opaque" if part.opaque.provider == ITEM:
                closed = self._close_idle()
                raw: Any = msgspec.Raw(part.opaque.raw_json.encode())
                _, index = self._place("item", raw)
                added = self._event("response.output_item.added", output_index=index, item=raw)
                return closed + added + self._event("response.output_item.done", output_index=index, item=raw)
        return b""

    def _content_start(self, part_index: int, kind: str, part: Part) -> bytes:
        begun = b""
        message = self._message
        if message is None:
            identifier, index = self._place("msg", None)
            message = self._message = _Message(identifier, index)
            item = message_item(identifier, [], "in_progress")
            begun = self._event("response.output_item.added", output_index=index, item=item)
        where = {
            "item_id": message.identifier,
            "output_index": message.output_index,
            "content_index": len(message.content),
        }
        message.content.append(None)
        message.open += 1
        opened = self._parts[part_index] = _Open(kind, part, where, message)
        piece = text_piece("") if kind == "text" else refusal_piece("")
        begun += self._event("response.content_part.added", **where, part=piece)
        return begun + self._more(opened, part.text.text if kind == "text" else part.refusal.text)

    def part_delta(self, event: PartDelta) -> bytes:
        """Return more of a part. Citations follow their text."""
        opened = self._parts.get(event.index)
        if opened is None:
            return b""
        match event.WhichOneof("delta"):
            case "text":
                return self._more(opened, event.text)
            case "refusal":
                return self._more(opened, event.refusal)
            case "arguments_json":
                return self._more(opened, event.arguments_json)
            case "reasoning":
                return self._more(opened, event.reasoning)
            case "logprobs":
                return self._likely(opened, write_logprobs(event.logprobs.tokens)["content"])
            case "citation":
                opened.citations.append(event.citation)
            case "signature":
                opened.part.reasoning.signature += event.signature
        return b""

    def _more(self, opened: _Open, text: str) -> bytes:
        if not text:
            return b""
        opened.pieces.append(text)
        match opened.kind:
            case "text":
                return self._event("response.output_text.delta", **opened.where, delta=text, logprobs=[])
            case "refusal":
                return self._event("response.refusal.delta", **opened.where, delta=text)
            case "tool_call":
                return self._event("response.function_call_arguments.delta", **opened.where, delta=text)
        begun = b""
        if not opened.announced:
            opened.announced = True
            opened.where["summary_index"] = 0
            part = {"type": "summary_text", "text": ""}
            begun = self._event("response.reasoning_summary_part.added", **opened.where, part=part)
        return begun + self._event("response.reasoning_summary_text.delta", **opened.where, delta=text)

    def _likely(self, opened: _Open, logprobs: list[Any]) -> bytes:
        """Return how likely the tokens before were; they come with a piece of the text, here an empty one."""
        opened.logprobs += logprobs
        return self._event("response.output_text.delta", **opened.where, delta="", logprobs=logprobs)

    def part_stop(self, event: PartStop) -> bytes:
        """Return the end of a piece of content or of an item."""
        opened = self._parts.pop(event.index, None)
        if opened is None:
            return b""
        text = "".join(opened.pieces)
        match opened.kind:
            case "tool_call":
                return self._call_done(opened, text)
            case "reasoning":
                return self._thought_done(opened, text)
            case "raw_reasoning":
                return self._raw_thought_done(opened, text)
        assert opened.message is not None
        where = opened.where
        cited = b""
        if opened.kind == "text":
            for annotation in write_annotations(opened.citations, len(text)):
                number = len(opened.annotations)
                opened.annotations.append(annotation)
                cited += self._event(
                    "response.output_text.annotation.added",
                    **where,
                    annotation_index=number,
                    annotation=annotation,
                )
            said = {"text": text, "logprobs": opened.logprobs}
            piece = {**text_piece(text), "annotations": opened.annotations, "logprobs": opened.logprobs}
            done = self._event("response.output_text.done", **where, **said)
        else:
            piece = refusal_piece(text)
            done = self._event("response.refusal.done", **where, refusal=text)
        opened.message.content[where["content_index"]] = piece
        opened.message.open -= 1
        return cited + done + self._event("response.content_part.done", **where, part=piece)

    def _call_done(self, opened: _Open, arguments: str) -> bytes:
        call = opened.part.tool_call
        call.arguments_json = arguments
        where = opened.where
        done = self._event(
            "response.function_call_arguments.done", **where, name=call.name, arguments=arguments
        )
        return done + self._item_done(
            {"id": where["item_id"], "status": "completed", **call_item(call)}, where
        )

    def _thought_done(self, opened: _Open, text: str) -> bytes:
        opened.part.reasoning.text = text
        where, done = opened.where, b""
        if opened.announced:
            part = {"type": "summary_text", "text": text}
            done = self._event("response.reasoning_summary_text.done", **where, text=text)
            done += self._event("response.reasoning_summary_part.done", **where, part=part)
        item = {"id": where["item_id"], **reasoning_item(opened.part)}
        if opened.before:
            item["summary"] = [*opened.before, *item["summary"]]
        return done + self._item_done(item, where)

    def _raw_thought_done(self, opened: _Open, text: str) -> bytes:
        """Return the end of a thought that broke off as it was thought."""
        where = opened.where
        done = self._event("response.reasoning_text.done", **where, text=text)
        content = [*opened.before, {"type": "reasoning_text", "text": text}]
        item = {"id": where["item_id"], "type": "reasoning", "summary": [], "content": content}
        return done + self._item_done(item, where)

    def _item_done(self, item: dict[str, Any], where: Mapping[str, Any]) -> bytes:
        index = where["output_index"]
        self._output[index] = item
        return self._event("response.output_item.done", output_index=index, item=item)

    def _close_idle(self) -> bytes:
        """Return the end of the message, unless some of its content is still being written."""
        if self._message is None or self._message.open:
            return b""
        return self._close_message("completed")

    def _close_message(self, status: str) -> bytes:
        message, self._message = self._message, None
        if message is None:
            return b""
        item = message_item(message.identifier, message.content, status)
        return self._item_done(item, {"output_index": message.output_index})

    def finish(self, finish: Finish, usage: Usage, extra: Mapping[str, Any] | None = None) -> bytes:
        """Return the ends of what is open, and the last event with `extra` as `omnihub` in its response."""
        closed = b"".join(self.part_stop(PartStop(index=index)) for index in list(self._parts))
        outcome = write_finish(finish)
        status = outcome["status"]
        closed += self._close_message("completed" if status == "completed" else "incomplete")
        response = {**self._response, **outcome, "output": self._output, "usage": write_usage(usage)}
        if extra:
            response["omnihub"] = dict(extra)
        return closed + self._event(f"response.{status}", response=response)

    def error(
        self,
        *,
        type: str,
        code: str,
        message: str,
        param: str | None = None,
        request_id: str = "",
        extra: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Return the error event that ends a broken stream."""
        return error_event(
            type=type,
            code=code,
            message=message,
            param=param,
            request_id=request_id,
            extra=extra,
            sequence_number=self._sequence,
        )


def write_stream_error(
    *,
    type: str,
    code: str,
    message: str,
    param: str | None = None,
    request_id: str = "",
    extra: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the error event that ends a broken stream, raw ones too."""
    return error_event(type=type, code=code, message=message, param=param, request_id=request_id, extra=extra)


class _Kind(msgspec.Struct):
    type: str = ""


_kind_decoder = msgspec.json.Decoder(_Kind)


def close_raw_stream(
    raw_tail: Sequence[bytes], extra: Mapping[str, Any] | None = None, untold: Usage | None = None
) -> bytes:
    """Frame the held-back documents of a raw stream, `extra` as `omnihub` in the response of the first.

    `untold` is the usage that its provider did not tell.
    """
    documents = list(raw_tail)
    if documents and extra:
        fields = read_object(documents[0])
        if "response" in fields:
            response = bytes(fields["response"])
            if untold is not None:
                response = write_object({**read_object(response), "usage": write_usage(untold)})
            fields["response"] = msgspec.Raw(splice(response, "omnihub", extra))
            documents[0] = write_object(fields)
        else:
            documents[0] = splice(documents[0], "omnihub", extra)
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (_kind_decoder.decode(document).type.encode(), document)
        for document in documents
    )
