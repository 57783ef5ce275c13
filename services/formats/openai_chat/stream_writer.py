"""Typed events to the chunks of a chat completion stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omnihub.common.v1.chat_pb2 import Citation, Finish, Usage
from omnihub.common.v1.stream_pb2 import PartDelta, PartStart, PartStop

from services.formats.documents import read_object, splice, write_object
from services.formats.openai_chat.citations import write_annotation
from services.formats.openai_chat.errors import error_object
from services.formats.openai_chat.logprobs import write_logprobs
from services.formats.openai_chat.messages import write_signature
from services.formats.openai_chat.outcome import write_finish, write_usage

DONE = b"data: [DONE]\n\n"


def frame(document: bytes) -> bytes:
    """Return a document as one server-sent event."""
    return b"data: %b\n\n" % document


class StreamWriter:
    """Writes one answer as server-sent events. Each method returns the bytes to send, perhaps none."""

    def __init__(self, model: str, response_id: str, created: int, include_usage: bool) -> None:
        self._response_id = response_id
        self._created = created
        self._include_usage = include_usage
        self._tools: dict[int, int] = {}
        self._written = 0
        """Characters of text so far; negative when that is not known."""
        self._begun: dict[int, int] = {}
        self._citations: dict[int, list[Citation]] = {}
        self.set_model(model)

    def set_model(self, model: str) -> None:
        """Name another model from here on: the one that really speaks."""
        self._envelope = {
            "id": self._response_id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": model,
        }
        self._head = b"data: " + write_object(self._envelope)[:-1] + b',"choices":[{"index":0,"delta":'
        self._tail = b',"finish_reason":null}]' + (b',"usage":null}\n\n' if self._include_usage else b"}\n\n")

    def resume(self, parts: int) -> None:
        """Go on with a stream that began in this format, after `parts` parts; it does not number them."""
        # Annotations count from the beginning of a text that is not known here.
        self._written = -1

    def _chunk(self, delta: dict[str, Any]) -> bytes:
        return self._head + write_object(delta) + self._tail

    def start(self) -> bytes:
        """Return the first chunk: who speaks."""
        return self._chunk({"role": "assistant", "content": ""})

    def part_start(self, event: PartStart) -> bytes:
        """Return what a part has at its start."""
        part = event.part
        match part.WhichOneof("kind"):
            case "text":
                self._begun[event.index] = self._written
                return self._text(part.text.text) if part.text.text else b""
            case "reasoning":
                return self._chunk({"reasoning_content": part.reasoning.text}) if part.reasoning.text else b""
            case "refusal":
                return self._chunk({"refusal": part.refusal.text}) if part.refusal.text else b""
            case "tool_call":
                index = self._tools.setdefault(event.index, len(self._tools))
                call = part.tool_call
                function = {"name": call.name, "arguments": call.arguments_json}
                written = {"index": index, "id": call.id, "type": "function", "function": function}
                if call.signature:
                    write_signature(written, call.signature)
                return self._chunk({"tool_calls": [written]})
        return b""

    def _text(self, text: str) -> bytes:
        if self._written >= 0:
            self._written += len(text)
        return self._chunk({"content": text})

    def part_delta(self, event: PartDelta) -> bytes:
        """Return more of a part. Signatures have no place in this format; citations follow their text."""
        match event.WhichOneof("delta"):
            case "text":
                return self._text(event.text)
            case "logprobs":
                choice = {
                    "index": 0,
                    "delta": {},
                    "logprobs": write_logprobs(event.logprobs.tokens),
                    "finish_reason": None,
                }
                usage = {"usage": None} if self._include_usage else {}
                return frame(write_object({**self._envelope, "choices": [choice], **usage}))
            case "citation":
                self._citations.setdefault(event.index, []).append(event.citation)
            case "arguments_json":
                index = self._tools.get(event.index, 0)
                function = {"arguments": event.arguments_json}
                return self._chunk({"tool_calls": [{"index": index, "function": function}]})
            case "reasoning":
                return self._chunk({"reasoning_content": event.reasoning})
            case "refusal":
                return self._chunk({"refusal": event.refusal})
        return b""

    def part_stop(self, event: PartStop) -> bytes:
        """Return the annotations of a text; this format does not mark the end of a part."""
        citations = self._citations.pop(event.index, ())
        offset = self._begun.pop(event.index, -1)
        if offset < 0 or self._written < 0:
            return b""
        annotations = [write_annotation(each, offset, self._written - offset) for each in citations]
        found = [annotation for annotation in annotations if annotation is not None]
        return self._chunk({"annotations": found}) if found else b""

    def finish(self, finish: Finish, usage: Usage, extra: Mapping[str, Any] | None = None) -> bytes:
        """Return the finish chunk with `extra` as `omnihub`, the usage chunk if asked for, and the end."""
        choice = {"index": 0, "delta": {}, "finish_reason": write_finish(finish)}
        last: dict[str, Any] = {**self._envelope, "choices": [choice]}
        if self._include_usage:
            last["usage"] = None
        if extra:
            last["omnihub"] = dict(extra)
        frames = frame(write_object(last))
        if self._include_usage:
            frames += frame(write_object({**self._envelope, "choices": [], "usage": write_usage(usage)}))
        return frames + DONE

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
        """Return the error event that ends a broken stream. No `[DONE]` follows."""
        return write_stream_error(
            type=type, code=code, message=message, param=param, request_id=request_id, extra=extra
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
    """Return the error event that ends a broken stream, raw ones too. No `[DONE]` follows."""
    document = error_object(
        type=type, code=code, message=message, param=param, request_id=request_id, extra=extra
    )
    return frame(write_object(document))


def close_raw_stream(
    raw_tail: Sequence[bytes], extra: Mapping[str, Any] | None = None, untold: Usage | None = None
) -> bytes:
    """Frame the held-back documents of a raw stream, `extra` in the first as `omnihub`, and end it.

    `untold` is the usage that the caller asked for and its provider did not tell.
    """
    documents = list(raw_tail)
    if documents and untold is not None:
        last = read_object(documents[-1])
        chunk: dict[str, Any] = {
            name: last[name] for name in ("id", "object", "created", "model") if name in last
        }
        documents.append(write_object({**chunk, "choices": [], "usage": write_usage(untold)}))
    if documents and extra:
        documents[0] = splice(documents[0], "omnihub", extra)
    return b"".join(map(frame, documents)) + DONE
