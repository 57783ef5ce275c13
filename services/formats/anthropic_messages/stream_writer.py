"""Typed events to the events of a messages stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import Finish, Part, Usage
from omnihub.common.v1.stream_pb2 import PartDelta, PartStart, PartStop

from services.formats.anthropic_messages.citations import write_citation
from services.formats.anthropic_messages.errors import error_object
from services.formats.anthropic_messages.outcome import write_finish, write_usage
from services.formats.documents import read_object, splice, write_object


def frame(kind: str, document: bytes) -> bytes:
    """Return a document as one server-sent event."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), document)


def _event(kind: str, **fields: Any) -> bytes:
    return frame(kind, write_object({"type": kind, **fields}))


def _block(part: Part) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the empty block a part starts as, and the delta of what it already holds."""
    match part.WhichOneof("kind"):
        case "tool_call":
            call = part.tool_call
            delta = {"type": "input_json_delta", "partial_json": call.arguments_json}
            block: dict[str, Any] = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
            return block, delta if call.arguments_json else None
        case "reasoning" if part.reasoning.redacted:
            return {"type": "redacted_thinking", "data": part.reasoning.encrypted}, None
        case "reasoning":
            thinking = part.reasoning.text
            block = {"type": "thinking", "thinking": "", "signature": part.reasoning.signature}
            return block, {"type": "thinking_delta", "thinking": thinking} if thinking else None
        case "opaque":
            return {**msgspec.json.decode(part.opaque.raw_json, type=dict[str, msgspec.Raw])}, None
    text = part.refusal.text if part.WhichOneof("kind") == "refusal" else part.text.text
    return {"type": "text", "text": ""}, {"type": "text_delta", "text": text} if text else None


class StreamWriter:
    """Writes one answer as server-sent events. Each method returns the bytes to send, perhaps none."""

    def __init__(self, model: str, response_id: str, created: int, include_usage: bool) -> None:
        self._model = model
        self._response_id = response_id
        self._blocks: dict[int, int] = {}

    def set_model(self, model: str) -> None:
        """Name another model; this format says the model once, at the start."""
        self._model = model

    def resume(self, parts: int) -> None:
        """Go on with a stream that began in this format, after `parts` parts."""
        self._blocks = {index: index for index in range(parts)}

    def start(self) -> bytes:
        """Return `message_start`. Usage is not known yet and follows at the end."""
        message: dict[str, Any] = {
            "id": self._response_id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }
        return _event("message_start", message=message)

    def part_start(self, event: PartStart) -> bytes:
        """Return the start of a block and what it already holds."""
        index = self._blocks.setdefault(event.index, len(self._blocks))
        block, delta = _block(event.part)
        started = _event("content_block_start", index=index, content_block=block)
        return started + (_event("content_block_delta", index=index, delta=delta) if delta else b"")

    def part_delta(self, event: PartDelta) -> bytes:
        """Return more of a block."""
        delta: dict[str, Any]
        match event.WhichOneof("delta"):
            case "text":
                delta = {"type": "text_delta", "text": event.text}
            case "refusal":
                delta = {"type": "text_delta", "text": event.refusal}
            case "arguments_json":
                delta = {"type": "input_json_delta", "partial_json": event.arguments_json}
            case "reasoning":
                delta = {"type": "thinking_delta", "thinking": event.reasoning}
            case "signature":
                delta = {"type": "signature_delta", "signature": event.signature}
            case "citations_json":
                delta = {"type": "citations_delta", "citation": msgspec.Raw(event.citations_json.encode())}
            case "citation":
                written = write_citation(event.citation)
                if written is None:
                    return b""
                delta = {"type": "citations_delta", "citation": written}
            case _:
                return b""
        return _event("content_block_delta", index=self._blocks.get(event.index, 0), delta=delta)

    def part_stop(self, event: PartStop) -> bytes:
        """Return the end of a block."""
        return _event("content_block_stop", index=self._blocks.get(event.index, 0))

    def finish(self, finish: Finish, usage: Usage, extra: Mapping[str, Any] | None = None) -> bytes:
        """Return `message_delta` with `extra` as `omnihub`, and `message_stop`."""
        delta = {"stop_reason": write_finish(finish), "stop_sequence": finish.stop_sequence or None}
        fields: dict[str, Any] = {"delta": delta, "usage": write_usage(usage)}
        if extra:
            fields["omnihub"] = dict(extra)
        return _event("message_delta", **fields) + _event("message_stop")

    def error(
        self,
        *,
        type: str,
        code: str = "",
        message: str,
        param: str | None = None,
        request_id: str = "",
        extra: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Return the error event that ends a broken stream."""
        return write_stream_error(type=type, message=message, request_id=request_id, extra=extra)


def write_stream_error(
    *,
    type: str,
    code: str = "",
    message: str,
    param: str | None = None,
    request_id: str = "",
    extra: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the error event that ends a broken stream, raw ones too."""
    document = error_object(type=type, message=message, request_id=request_id, extra=extra)
    return frame("error", write_object(document))


class _Kind(msgspec.Struct):
    type: str = ""


_STOP = "message_stop"
_kind_decoder = msgspec.json.Decoder(_Kind)


def close_raw_stream(
    raw_tail: Sequence[bytes], extra: Mapping[str, Any] | None = None, untold: Usage | None = None
) -> bytes:
    """Frame the held-back documents of a raw stream, `extra` in the first as `omnihub`.

    `untold` is the usage that its provider did not tell: clients cannot read the end without one.
    """
    documents = list(raw_tail)
    if documents and untold is not None:
        documents[0] = write_object({**read_object(documents[0]), "usage": write_usage(untold)})
    if documents and extra:
        documents[0] = splice(documents[0], "omnihub", extra)
    kinds = [_kind_decoder.decode(document).type for document in documents]
    frames = [frame(kind, document) for kind, document in zip(kinds, documents, strict=True)]
    if _STOP not in kinds:  # The provider left it out, though it had said why it stopped.
        frames.append(_event(_STOP))
    return b"".join(frames)
