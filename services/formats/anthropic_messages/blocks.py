"""The blocks of a message's content, both ways."""

from __future__ import annotations

from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import MediaPart, OpaquePart, Part, ToolCall

from services.formats.anthropic_messages.citations import read_citation
from services.formats.documents import (
    Fields,
    is_object,
    join,
    keep,
    merge,
    raw_of,
    read_value,
    starts_with,
    take,
    take_text,
    text_of,
)
from services.formats.errors import invalid, unsupported
from services.formats.media import decode_base64, encode_base64

PROVIDER = "anthropic"


def read_blocks(raw: msgspec.Raw, path: str) -> list[Part]:
    """Read content: a string, or a list of blocks."""
    if starts_with(raw, b'"'):
        part = Part()
        part.text.text = read_value(raw, str, path)
        return [part]
    blocks = read_value(raw, list[msgspec.Raw], path)
    return [_read_block(block, f"{path}[{index}]") for index, block in enumerate(blocks)]


def _read_block(raw: msgspec.Raw, path: str) -> Part:
    fields = read_value(raw, Fields, path)
    kind = take(fields, "type", str, path)
    if not kind:
        raise invalid(join(path, "type"), "name the kind of the block, such as text")
    part = Part()
    hint = fields.pop("cache_control", None)
    if hint is not None:
        part.cache_hint_json = text_of(hint)
    reader = _READERS.get(kind)
    if reader is None or not reader(fields, part, path):
        return Part(opaque=OpaquePart(provider=PROVIDER, raw_json=text_of(raw)))
    keep(fields, part.extension_json)
    return part


def _read_text(fields: Fields, part: Part, path: str) -> bool:
    text = take(fields, "text", str, path)
    if text is None:
        raise invalid(join(path, "text"), "a text block needs its text")
    part.text.text = text
    if (citations := take(fields, "citations", list[msgspec.Raw], path)) is not None:
        part.text.citations_json = msgspec.json.encode(citations).decode()
        part.text.citations.extend(map(read_citation, citations))
    return True


def _read_image(fields: Fields, part: Part, path: str) -> bool:
    return _read_source(fields, part.image, path)


def _read_document(fields: Fields, part: Part, path: str) -> bool:
    part.document.name = take_text(fields, "title", path)
    return _read_source(fields, part.document, path)


def _read_source(fields: Fields, media: MediaPart, path: str) -> bool:
    source = take(fields, "source", Fields, path)
    if source is None:
        raise invalid(join(path, "source"), "this block needs its source")
    path = join(path, "source")
    kind = take(source, "type", str, path)
    mime = take_text(source, "media_type", path)
    match kind:
        case "base64":
            data = decode_base64(take(source, "data", str, path) or "")
            if data is None:
                return False
            media.data, media.mime = data, mime
        case "text":
            media.data, media.mime = (take(source, "data", str, path) or "").encode(), mime
        case "url":
            media.url = take(source, "url", str, path) or ""
        case "file":
            media.file_id = take(source, "file_id", str, path) or ""
        case _:
            return False
    return not source


def _read_tool_use(fields: Fields, part: Part, path: str) -> bool:
    raw = fields.pop("input", msgspec.Raw(b"{}"))
    call = ToolCall(id=take_text(fields, "id", path), name=take_text(fields, "name", path))
    call.arguments_json = text_of(raw)
    part.tool_call.CopyFrom(call)
    return True


def _read_tool_result(fields: Fields, part: Part, path: str) -> bool:
    result = part.tool_result
    result.call_id = take_text(fields, "tool_use_id", path)
    if not result.call_id:
        raise invalid(join(path, "tool_use_id"), "say which tool call this answers")
    if take(fields, "is_error", bool, path):
        result.is_error = True
    content = fields.pop("content", None)
    if content is not None:
        result.parts.extend(read_blocks(content, join(path, "content")))
    result.SetInParent()
    return True


def _read_thinking(fields: Fields, part: Part, path: str) -> bool:
    part.reasoning.text = take(fields, "thinking", str, path) or ""
    part.reasoning.signature = take(fields, "signature", str, path) or ""
    return True


def _read_redacted(fields: Fields, part: Part, path: str) -> bool:
    part.reasoning.encrypted = take(fields, "data", str, path) or ""
    part.reasoning.redacted = True
    return True


_READERS = {
    "text": _read_text,
    "image": _read_image,
    "document": _read_document,
    "tool_use": _read_tool_use,
    "tool_result": _read_tool_result,
    "thinking": _read_thinking,
    "redacted_thinking": _read_redacted,
}


def write_block(part: Part, path: str, own: bool) -> dict[str, Any] | msgspec.Raw | None:
    """Return the block; None for what belongs to another provider or is empty.

    `own` says that raw JSON inside the part is in this format.
    """
    fields: dict[str, Any] | None
    match part.WhichOneof("kind"):
        case "text":
            # The vendor refuses empty text.
            fields = {"type": "text", "text": part.text.text} if own or part.text.text else None
            if fields and own and part.text.citations_json:
                fields["citations"] = raw_of(part.text.citations_json)
        case "refusal":
            fields = {"type": "text", "text": part.refusal.text}
        case "image":
            fields = {"type": "image", "source": _write_source(part.image)}
        case "document":
            fields = {"type": "document", "source": _write_document_source(part.document, path)}
            if part.document.name:
                fields["title"] = part.document.name
        case "tool_call":
            fields = _write_tool_use(part.tool_call)
        case "tool_result":
            fields = _write_tool_result(part, path, own)
        case "reasoning":
            fields = _write_reasoning(part)
        case "opaque":
            return raw_of(part.opaque.raw_json) if part.opaque.provider == PROVIDER else None
        case kind:
            raise unsupported(path, f"this provider takes no {kind}")
    if fields is None:
        return None
    if part.cache_hint_json:
        fields["cache_control"] = raw_of(part.cache_hint_json)
    return merge(fields, part.extension_json) if own else fields


def _write_source(media: MediaPart) -> dict[str, Any]:
    match media.WhichOneof("source"):
        case "url":
            return {"type": "url", "url": media.url}
        case "file_id":
            return {"type": "file", "file_id": media.file_id}
    return {"type": "base64", "media_type": media.mime, "data": encode_base64(media.data)}


def _write_document_source(media: MediaPart, path: str) -> dict[str, Any]:
    if media.mime.startswith("text/") and media.WhichOneof("source") == "data":
        try:
            text = media.data.decode()
        except UnicodeDecodeError:
            raise unsupported(path, "a text document must be UTF-8") from None
        return {"type": "text", "media_type": "text/plain", "data": text}
    return _write_source(media)


def _write_tool_use(call: ToolCall) -> dict[str, Any]:
    if is_object(call.arguments_json):
        arguments: Any = raw_of(call.arguments_json)
    else:  # This format has no other place for what a model wrote instead of an object.
        arguments = {"arguments": call.arguments_json} if call.arguments_json else {}
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments}


def _write_tool_result(part: Part, path: str, own: bool) -> dict[str, Any]:
    result = part.tool_result
    fields: dict[str, Any] = {"type": "tool_result", "tool_use_id": result.call_id}
    blocks = [write_block(piece, f"{path}.content[{i}]", own) for i, piece in enumerate(result.parts)]
    blocks = [block for block in blocks if block is not None]
    if len(blocks) == 1 and isinstance(blocks[0], dict) and blocks[0].keys() == {"type", "text"}:
        fields["content"] = blocks[0]["text"]
    elif blocks:
        fields["content"] = blocks
    if result.is_error:
        fields["is_error"] = True
    return fields


def _write_reasoning(part: Part) -> dict[str, Any] | None:
    reasoning = part.reasoning
    if reasoning.redacted:
        return {"type": "redacted_thinking", "data": reasoning.encrypted}
    if not reasoning.signature:  # Thoughts of another provider: without a signature they are refused.
        return None
    return {"type": "thinking", "thinking": reasoning.text, "signature": reasoning.signature}
