"""The parts of a content, both ways."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import MediaPart, OpaquePart, Part, ToolCall

from services.formats.documents import (
    Fields,
    is_null,
    is_object,
    join,
    keep,
    merge,
    raw_of,
    read_value,
    take,
    take_text,
    text_of,
)
from services.formats.errors import unsupported
from services.formats.gemini.calls import is_made
from services.formats.media import decode_base64, encode_base64

PROVIDER = "google"
SIGNATURE = "thoughtSignature"
_MEDIA_KINDS = frozenset({"image", "audio", "video", "document"})
_MIMES = {"image": "image/png", "audio": "audio/wav", "video": "video/mp4", "document": "application/pdf"}
_MIME_OF_ENDING = {
    "gif": "image/gif",
    "heic": "image/heic",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "mp3": "audio/mp3",
    "mp4": "video/mp4",
    "pdf": "application/pdf",
    "png": "image/png",
    "wav": "audio/wav",
    "webm": "video/webm",
    "webp": "image/webp",
}


class CallIds:
    """Gives ids to calls that came without, and finds the call that a result without an id answers."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._count = 0
        self._open: defaultdict[str, deque[str]] = defaultdict(deque)

    def make(self, name: str) -> str:
        """Return the id of another call of the tool `name`."""
        identifier = f"{self._prefix}_{self._count}"
        self._count += 1
        self._open[name].append(identifier)
        return identifier

    def answered(self, name: str) -> str:
        """Return the id of the oldest call of `name` that has no result yet."""
        waiting = self._open[name]
        return waiting.popleft() if waiting else f"{self._prefix}_{self._count}"


def read_part(raw: msgspec.Raw, path: str, ids: CallIds) -> Part:
    """Read one part. Raises FormatError naming the field that is wrong."""
    fields = read_value(raw, Fields, path)
    part = Part()
    for name, reader in _READERS.items():
        if not is_null(fields.get(name, b"null")):
            if reader(fields, part, path, ids):
                keep(fields, part.extension_json)
                return part
            break
    return Part(opaque=OpaquePart(provider=PROVIDER, raw_json=text_of(raw)))


def _read_text(fields: Fields, part: Part, path: str, ids: CallIds) -> bool:
    text = take(fields, "text", str, path) or ""
    if bytes(fields.get("thought", b"")) == b"true":
        del fields["thought"]
        part.reasoning.text = text
        part.reasoning.signature = take_text(fields, SIGNATURE, path)
        part.reasoning.SetInParent()
        return True
    part.text.text = text
    part.text.SetInParent()
    return True


def _read_call(fields: Fields, part: Part, path: str, ids: CallIds) -> bool:
    inner = take(fields, "functionCall", Fields, path) or {}
    path = join(path, "functionCall")
    call = ToolCall(id=take_text(inner, "id", path), name=take_text(inner, "name", path))
    arguments = inner.pop("args", None)
    if arguments is not None:
        call.arguments_json = text_of(arguments)
    if not call.id:
        call.id, call.id_synthesised = ids.make(call.name), True
    call.signature = take_text(fields, SIGNATURE, path)
    part.tool_call.CopyFrom(call)
    _keep_nested(inner, "functionCall", fields)
    return True


def _read_result(fields: Fields, part: Part, path: str, ids: CallIds) -> bool:
    inner = take(fields, "functionResponse", Fields, path) or {}
    path = join(path, "functionResponse")
    result = part.tool_result
    result.call_id, result.name = take_text(inner, "id", path), take_text(inner, "name", path)
    result.call_id = result.call_id or ids.answered(result.name)
    response = inner.pop("response", None)
    if response is not None:
        result.parts.add().text.text = text_of(response)
    _read_result_media(inner, part, path)
    _keep_nested(inner, "functionResponse", fields)
    return True


def _read_result_media(inner: Fields, part: Part, path: str) -> None:
    """Take the media of a result when each is nothing but its bytes."""
    if is_null(inner.get("parts", b"null")):
        return
    media: list[Part] = []
    for fields in read_value(inner["parts"], list[Fields], join(path, "parts")):
        piece = Part()
        if not _read_inline(fields, piece, path, None) or fields:
            return
        media.append(piece)
    if media:
        part.tool_result.parts.extend(media)
        del inner["parts"]


def _read_inline(fields: Fields, part: Part, path: str, ids: CallIds | None) -> bool:
    inner = take(fields, "inlineData", Fields, path) or {}
    path = join(path, "inlineData")
    mime = take_text(inner, "mimeType", path)
    data = decode_base64(take(inner, "data", str, path) or "")
    if data is None:
        return False
    media = _media_of(part, mime)
    media.mime, media.data = mime, data
    _keep_nested(inner, "inlineData", fields)
    return True


def _read_file(fields: Fields, part: Part, path: str, ids: CallIds | None) -> bool:
    inner = take(fields, "fileData", Fields, path) or {}
    path = join(path, "fileData")
    mime = take_text(inner, "mimeType", path)
    uri = take(inner, "fileUri", str, path)
    if uri is None:
        return False
    media = _media_of(part, mime)
    media.mime, media.url = mime, uri
    _keep_nested(inner, "fileData", fields)
    return True


_READERS = {
    "functionCall": _read_call,
    "functionResponse": _read_result,
    "inlineData": _read_inline,
    "fileData": _read_file,
    "text": _read_text,
}


def _media_of(part: Part, mime: str) -> MediaPart:
    kind = mime.partition("/")[0]
    media: MediaPart = getattr(part, kind if kind in _MEDIA_KINDS else "document")
    media.SetInParent()
    return media


def _keep_nested(inner: Fields, name: str, fields: Fields) -> None:
    if inner:
        fields[name] = msgspec.Raw(msgspec.json.encode(inner))


def write_part(part: Part, path: str, own: bool) -> dict[str, Any] | msgspec.Raw | None:
    """Return the part; None for what belongs to another provider or is empty. Results are written elsewhere.

    `own` says that raw JSON inside the part is in this format.
    """
    fields: dict[str, Any]
    match part.WhichOneof("kind"):
        case "text":
            if not own and not part.text.text and SIGNATURE not in part.extension_json:
                return None
            fields = {"text": part.text.text}
        case "refusal":
            fields = {"text": part.refusal.text}
        case "reasoning" if own:
            fields = {"text": part.reasoning.text, "thought": True}
            if part.reasoning.signature:
                fields[SIGNATURE] = part.reasoning.signature
        case "tool_call":
            fields = write_call(part.tool_call, own)
        case "image" | "audio" | "video" | "document" as kind:
            fields = _write_media(getattr(part, kind), kind, path, own)
        case "opaque":
            return raw_of(part.opaque.raw_json) if part.opaque.provider == PROVIDER else None
        case _:
            return None
    if own:
        return merge(fields, part.extension_json)
    if part.WhichOneof("kind") == "text" and SIGNATURE in part.extension_json:  # Only this format has it.
        fields[SIGNATURE] = raw_of(part.extension_json[SIGNATURE])
    return fields


def write_call(call: ToolCall, own: bool) -> dict[str, Any]:
    """Return the part of a call. Ids that we made are not the provider's: it matches by name and order."""
    inner: dict[str, Any] = {}
    if call.id and not call.id_synthesised and not is_made(call.id):
        inner["id"] = call.id
    inner["name"] = call.name
    if own or is_object(call.arguments_json):
        if call.arguments_json:
            inner["args"] = raw_of(call.arguments_json)
    else:  # This format has no other place for what a model wrote instead of an object.
        inner["args"] = {"arguments": call.arguments_json} if call.arguments_json else {}
    fields: dict[str, Any] = {"functionCall": inner}
    if call.signature:
        fields[SIGNATURE] = call.signature
    return fields


def write_own_result(part: Part, path: str) -> dict[str, Any]:
    """Return the part of a result that came in this format."""
    result = part.tool_result
    inner: dict[str, Any] = {"name": result.name} if result.name else {}
    if result.call_id and not is_made(result.call_id):
        inner["id"] = result.call_id
    media: list[Any] = []
    for piece in result.parts:
        if piece.WhichOneof("kind") == "text":
            inner["response"] = raw_of(piece.text.text)
        else:
            media.append(write_part(piece, path, own=True))
    if media:
        inner["parts"] = media
    return merge({"functionResponse": inner}, part.extension_json)


def _write_media(media: MediaPart, kind: str, path: str, own: bool) -> dict[str, Any]:
    mime = media.mime
    match media.WhichOneof("source"):
        case "url":
            if not own and not mime:
                ending = media.url.partition("?")[0].rpartition(".")[2].lower()
                mime = _MIME_OF_ENDING.get(ending, "")
            file = {"fileUri": media.url}
            return {"fileData": {"mimeType": mime, **file} if mime else file}
        case "file_id":
            raise unsupported(
                path, "this provider takes media as bytes or as a URL, not by another's file id"
            )
    data: dict[str, Any] = {"data": encode_base64(media.data)}
    if mime or not own:
        data = {"mimeType": mime or _MIMES[kind], **data}
    return {"inlineData": data}
