"""The pieces of a message's content, both ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import MediaPart, OpaquePart, Part

from services.formats.documents import (
    Fields,
    is_null,
    join,
    keep,
    merge,
    raw_of,
    read_value,
    take,
    take_text,
    text_of,
)
from services.formats.errors import invalid, unsupported
from services.formats.media import decode_base64, encode_base64, read_data_url, write_data_url
from services.formats.openai_chat.parts import set_source

# Opaque parts of this format: pieces of content, and items of their own.
CONTENT, ITEM = "openai.responses.content", "openai.responses.item"
# Marks a text whose type is not the usual one of its side of the conversation.
_TYPE = "@type"


def text_type(role: str) -> str:
    """Return the type of a text that `role` says."""
    return "output_text" if role == "assistant" else "input_text"


def read_parts(raw: msgspec.Raw, role: str, path: str) -> list[Part]:
    """Read a list of content parts."""
    pieces = read_value(raw, list[msgspec.Raw], path)
    return [_read_part(piece, role, f"{path}[{index}]") for index, piece in enumerate(pieces)]


def _read_part(raw: msgspec.Raw, role: str, path: str) -> Part:
    fields = read_value(raw, Fields, path)
    kind = take(fields, "type", str, path)
    if not kind:
        raise invalid(join(path, "type"), "name the kind of the part, such as input_text")
    part = Part()
    if kind in ("input_text", "output_text"):
        text = take(fields, "text", str, path)
        if text is None:
            raise invalid(join(path, "text"), "a text part needs its text")
        part.text.text = text
        if kind != text_type(role):
            part.extension_json[_TYPE] = kind
    else:
        reader = _READERS.get(kind)
        if reader is None or not reader(fields, part, path):
            return Part(opaque=OpaquePart(provider=CONTENT, raw_json=text_of(raw)))
    keep(fields, part.extension_json)
    return part


def _read_refusal(fields: Fields, part: Part, path: str) -> bool:
    part.refusal.text = take(fields, "refusal", str, path) or ""
    return True


def _one_of(fields: Fields, names: Sequence[str], path: str) -> tuple[str, str]:
    """Remove and return the one field of `names` that is given; empty when there are none or several."""
    given = [name for name in names if not is_null(fields.get(name, b"null"))]
    if not given:
        raise invalid(path, f"this part needs one of {', '.join(names)}")
    return (given[0], take(fields, given[0], str, path) or "") if len(given) == 1 else ("", "")


def _read_image(fields: Fields, part: Part, path: str) -> bool:
    name, value = _one_of(fields, ("image_url", "file_id"), path)
    if not value:
        return False
    if name == "image_url":
        set_source(part.image, value)
    else:
        part.image.file_id = value
    part.image.detail = take_text(fields, "detail", path)
    return True


def _read_file(fields: Fields, part: Part, path: str) -> bool:
    name, value = _one_of(fields, ("file_data", "file_url", "file_id"), path)
    if name == "file_data":
        data = read_data_url(value)
        if data is None:
            return False
        part.document.mime, part.document.data = data
    elif name == "file_url":
        part.document.url = value
    elif name == "file_id":
        part.document.file_id = value
    part.document.name = take_text(fields, "filename", path)
    return bool(value)


def _read_audio(fields: Fields, part: Part, path: str) -> bool:
    inner = take(fields, "input_audio", Fields, path) or {}
    data = decode_base64(take(inner, "data", str, join(path, "input_audio")) or "")
    kind = take(inner, "format", str, join(path, "input_audio"))
    if data is None or not kind or inner:
        return False
    part.audio.data, part.audio.mime = data, f"audio/{kind}"
    return True


_READERS = {
    "refusal": _read_refusal,
    "input_image": _read_image,
    "input_file": _read_file,
    "input_audio": _read_audio,
}


def write_part(part: Part, role: str, path: str, own: bool) -> dict[str, Any] | msgspec.Raw | None:
    """Return the content part; None for what belongs to another provider.

    `own` says that raw JSON inside the part is in this format. Raises FormatError.
    """
    fields: dict[str, Any]
    match part.WhichOneof("kind"):
        case "text":
            kind = part.extension_json.get(_TYPE) if own else None
            fields = {"type": kind or text_type(role), "text": part.text.text}
        case "refusal":
            fields = {"type": "refusal", "refusal": part.refusal.text}
        case "image":
            fields = {"type": "input_image", **_write_image(part.image)}
            if part.image.detail or not own:
                fields["detail"] = part.image.detail or "auto"
        case "audio":
            if part.audio.WhichOneof("source") != "data":
                raise unsupported(path, "this provider takes audio only as bytes")
            kind = part.audio.mime.removeprefix("audio/")
            kind = {"mpeg": "mp3", "x-wav": "wav"}.get(kind, kind)
            audio = {"data": encode_base64(part.audio.data), "format": kind}
            fields = {"type": "input_audio", "input_audio": audio}
        case "document":
            fields = {"type": "input_file", **_write_file(part.document, own)}
        case "opaque":
            return raw_of(part.opaque.raw_json) if part.opaque.provider == CONTENT else None
        case "video":
            raise unsupported(path, "this provider takes no video")
        case _:
            return None
    return merge(fields, part.extension_json) if own else fields


def _write_image(media: MediaPart) -> dict[str, Any]:
    match media.WhichOneof("source"):
        case "file_id":
            return {"file_id": media.file_id}
        case "url":
            return {"image_url": media.url}
    return {"image_url": write_data_url(media.mime or "image/png", media.data)}


def _write_file(media: MediaPart, own: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {"filename": media.name} if media.name else {}
    match media.WhichOneof("source"):
        case "file_id":
            return {**fields, "file_id": media.file_id}
        case "url":
            return {**fields, "file_url": media.url}
    fields["file_data"] = write_data_url(media.mime or "application/pdf", media.data)
    if not own:  # The vendor refuses bytes without a name.
        fields.setdefault("filename", "document.pdf" if media.mime == "application/pdf" else "document")
    return fields
