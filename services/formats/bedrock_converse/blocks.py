"""The blocks of a message's content, both ways."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import OpaquePart, Part, ToolCall

from services.formats.bedrock_converse.citations import read_citation
from services.formats.bedrock_converse.media import mime_of, write_document, write_media
from services.formats.details import is_sealed
from services.formats.documents import (
    Fields,
    from_decode_error,
    join,
    keep,
    raw_of,
    read_value,
    take_text,
    text_of,
)
from services.formats.errors import FormatError, invalid, unsupported
from services.formats.media import decode_base64
from services.formats.search_results import SearchResult, read_search_result

# Opaque parts of this provider are sent back to it.
PROVIDER = "bedrock"
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


def tool_id(given: str) -> str:
    """Return the id as the provider takes it: one that is too long or odd gets another, always the same."""
    return given if _ID.fullmatch(given) else f"call_{hashlib.sha256(given.encode()).hexdigest()[:40]}"


def is_object(arguments: str) -> bool:
    """Tell whether a model's arguments are a JSON object."""
    try:
        read_value(arguments.encode(), Fields, "")
    except FormatError:
        return False
    return True


class BlockWriter:
    """Writes parts as blocks; the names of documents are unique in a request."""

    def __init__(self) -> None:
        self._document_names: set[str] = set()

    def write(self, part: Part, path: str) -> dict[str, Any] | msgspec.Raw | None:
        """Return the block; None for what is empty or belongs to another provider."""
        match part.WhichOneof("kind"):
            case "text":
                return _write_text(part.text.text)
            case "refusal":
                return _write_text(part.refusal.text)
            case "image" | "audio" | "video" as kind:
                return write_media(kind, getattr(part, kind), path)
            case "document":
                block = write_document(part.document, path, self._document_names)
                block["document"].update(document_fields(part))
                return block
            case "tool_call":
                return {"toolUse": _write_tool_use(part.tool_call)}
            case "tool_result":
                return self._write_tool_result(part, path)
            case "reasoning":
                return _write_reasoning(part)
            case "opaque" if part.opaque.provider == PROVIDER:
                return raw_of(part.opaque.raw_json)
            case "opaque" if (found := read_search_result(part)) is not None:
                return _write_search_result(found)
        return None

    def _write_tool_result(self, part: Part, path: str) -> dict[str, Any]:
        result = part.tool_result
        content = []
        for index, piece in enumerate(result.parts):
            where = f"{path}.content[{index}]"
            if piece.WhichOneof("kind") not in {"text", "refusal", "image", "document", "video", "opaque"}:
                raise unsupported(where, "this provider takes text, images, documents and video from a tool")
            if (block := self.write(piece, where)) is not None:
                content.append(block)
        fields: dict[str, Any] = {"toolUseId": tool_id(result.call_id), "content": content}
        if result.is_error:
            fields["status"] = "error"
        return {"toolResult": fields}


class _Citing(msgspec.Struct):
    enabled: bool


_DOCUMENT_FIELDS = {"citations": _Citing, "context": str}


def document_fields(part: Part) -> dict[str, Any]:
    """Return what documents of another format say in the words of this one: cite it, and what it is about."""
    found: dict[str, Any] = {}
    if part.WhichOneof("kind") != "document":
        return found
    for name, kind in _DOCUMENT_FIELDS.items():
        try:
            found[name] = msgspec.json.decode(part.extension_json.get(name, "null"), type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return found


def _write_text(text: str) -> dict[str, Any] | None:
    # The provider refuses blank text.
    return {"text": text} if text.strip() else None


def _write_search_result(found: SearchResult) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "source": found.source,
        "title": found.title,
        "content": [{"text": piece.text} for piece in found.content],
    }
    if found.citations is not None:
        fields["citations"] = {"enabled": found.citations.enabled}
    return {"searchResult": fields}


def _write_tool_use(call: ToolCall) -> dict[str, Any]:
    if is_object(call.arguments_json):
        arguments: Any = raw_of(call.arguments_json)
    else:  # This format has no other place for what a model wrote instead of an object.
        arguments = {"arguments": call.arguments_json} if call.arguments_json else {}
    return {"toolUseId": tool_id(call.id), "name": call.name, "input": arguments}


def _write_reasoning(part: Part) -> dict[str, Any] | None:
    reasoning = part.reasoning
    if is_sealed(reasoning):
        return None
    if reasoning.redacted:
        # What is no base64 comes from another provider.
        if decode_base64(reasoning.encrypted) is None:
            return None
        return {"reasoningContent": {"redactedContent": reasoning.encrypted}}
    if not reasoning.signature:  # Thoughts of another provider: without a signature they are refused.
        return None
    thought = {"text": reasoning.text, "signature": reasoning.signature}
    return {"reasoningContent": {"reasoningText": thought}}


def read_block(raw: msgspec.Raw, path: str) -> Part:
    """Read a block of an answer. What has no place here stays as it is. Raises FormatError."""
    fields = read_value(raw, Fields, path)
    name = next(iter(fields), "")
    part = Part()
    reader = _READERS.get(name)
    if len(fields) != 1 or reader is None or not reader(fields[name], part, join(path, name)):
        return Part(opaque=OpaquePart(provider=PROVIDER, raw_json=text_of(raw)))
    return part


def _read_text(raw: msgspec.Raw, part: Part, path: str) -> bool:
    part.text.text = read_value(raw, str, path)
    part.text.SetInParent()
    return True


def _read_tool_use(raw: msgspec.Raw, part: Part, path: str) -> bool:
    fields = read_value(raw, Fields, path)
    if "type" in fields:  # A tool that the provider itself runs.
        return False
    arguments = fields.pop("input", msgspec.Raw(b"{}"))
    call = ToolCall(id=take_text(fields, "toolUseId", path), name=take_text(fields, "name", path))
    if not call.name:
        raise invalid(join(path, "name"), "the call names no tool")
    call.arguments_json = text_of(arguments)
    part.tool_call.CopyFrom(call)
    keep(fields, part.extension_json)
    return True


class Thought(msgspec.Struct):
    """Text that the model thought, and the signature that proves it."""

    text: str = ""
    signature: str = ""


class _Reasoning(msgspec.Struct):
    reasoning_text: Thought | None = msgspec.field(default=None, name="reasoningText")
    redacted: str | None = msgspec.field(default=None, name="redactedContent")


def _read_reasoning(raw: msgspec.Raw, part: Part, path: str) -> bool:
    read = read_value(raw, _Reasoning, path)
    if read.redacted is not None:
        part.reasoning.encrypted = read.redacted
        part.reasoning.redacted = True
    elif read.reasoning_text is not None:
        part.reasoning.text = read.reasoning_text.text
        part.reasoning.signature = read.reasoning_text.signature
        part.reasoning.SetInParent()
    else:
        return False
    return True


class _CitedText(msgspec.Struct):
    text: str = ""


class _Citations(msgspec.Struct):
    content: list[_CitedText] = []
    citations: msgspec.Raw = msgspec.Raw(b"[]")


def _read_citations(raw: msgspec.Raw, part: Part, path: str) -> bool:
    read = read_value(raw, _Citations, path)
    part.text.text = "".join(piece.text for piece in read.content)
    part.text.citations_json = text_of(read.citations)
    part.text.citations.extend(map(read_citation, read_value(read.citations, list[msgspec.Raw], path)))
    return True


class ImageSource(msgspec.Struct):
    """Where an image is."""

    data: str | None = msgspec.field(default=None, name="bytes")


class _Image(msgspec.Struct):
    format: str = ""
    source: ImageSource | None = None


def _read_image(raw: msgspec.Raw, part: Part, path: str) -> bool:
    read = read_value(raw, _Image, path)
    data = decode_base64(read.source.data) if read.source is not None and read.source.data else None
    if data is None:
        return False
    part.image.data, part.image.mime = data, mime_of(read.format)
    return True


_READERS = {
    "text": _read_text,
    "toolUse": _read_tool_use,
    "reasoningContent": _read_reasoning,
    "citationsContent": _read_citations,
    "image": _read_image,
}


def cache_point(hint_json: str) -> dict[str, Any]:
    """Return the block that ends a prefix worth caching."""
    try:
        hint = msgspec.json.decode(hint_json, type=_Hint)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise from_decode_error(error, "cache_control") from None
    point = {"type": "default"}
    if hint.ttl in {"5m", "1h"}:
        point["ttl"] = hint.ttl
    return {"cachePoint": point}


class _Hint(msgspec.Struct):
    ttl: str = ""
