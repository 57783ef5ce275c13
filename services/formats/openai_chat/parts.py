"""The pieces of a message's content, both ways."""

from __future__ import annotations

from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import MediaPart, OpaquePart, Part

from services.formats.documents import (
    Fields,
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

PROVIDER = "openai"


def read_parts(raw: msgspec.Raw, path: str) -> list[Part]:
    """Read a list of content parts."""
    pieces = read_value(raw, list[msgspec.Raw], path)
    return [_read_part(piece, f"{path}[{index}]") for index, piece in enumerate(pieces)]


def _read_part(raw: msgspec.Raw, path: str) -> Part:
    fields = read_value(raw, Fields, path)
    kind = take(fields, "type", str, path)
    if not kind:
        raise invalid(join(path, "type"), "name the kind of the part, such as text")
    part = Part()
    if (hint := fields.pop("cache_control", None)) is not None:
        part.cache_hint_json = text_of(hint)
    reader = _READERS.get(kind)
    if reader is None or not reader(fields, part, path):
        return Part(opaque=OpaquePart(provider=PROVIDER, raw_json=text_of(raw)))
    keep(fields, part.extension_json)
    return part


def _read_text(fields: Fields, part: Part, path: str) -> bool:
    text = take(fields, "text", str, path)
    if text is None:
        raise invalid(join(path, "text"), "a text part needs its text")
    part.text.text = text
    return True


def _read_refusal(fields: Fields, part: Part, path: str) -> bool:
    part.refusal.text = take(fields, "refusal", str, path) or ""
    return True


def _read_image(fields: Fields, part: Part, path: str) -> bool:
    inner = take(fields, "image_url", Fields, path)
    path = join(path, "image_url")
    url = take(inner, "url", str, path) if inner is not None else None
    if inner is None or not url:
        raise invalid(join(path, "url"), "an image part needs a URL")
    set_source(part.image, url)
    part.image.detail = take_text(inner, "detail", path)
    _keep_nested(inner, "image_url", fields)
    return True


def _read_audio(fields: Fields, part: Part, path: str) -> bool:
    inner = take(fields, "input_audio", Fields, path) or {}
    data = decode_base64(take(inner, "data", str, join(path, "input_audio")) or "")
    kind = take(inner, "format", str, join(path, "input_audio"))
    if data is None or not kind:
        return False
    part.audio.data, part.audio.mime = data, f"audio/{kind}"
    _keep_nested(inner, "input_audio", fields)
    return True


def _read_file(fields: Fields, part: Part, path: str) -> bool:
    inner = take(fields, "file", Fields, path) or {}
    path = join(path, "file")
    part.document.name = take_text(inner, "filename", path)
    source = read_data_url(take(inner, "file_data", str, path) or "")
    file_id = take(inner, "file_id", str, path)
    if (source is None) == (file_id is None):
        return False
    if source is not None:
        part.document.mime, part.document.data = source
    else:
        part.document.file_id = file_id or ""
    _keep_nested(inner, "file", fields)
    return True


_READERS = {
    "text": _read_text,
    "refusal": _read_refusal,
    "image_url": _read_image,
    "input_audio": _read_audio,
    "file": _read_file,
}


def _keep_nested(inner: Fields, name: str, fields: Fields) -> None:
    if inner:
        fields[name] = msgspec.Raw(msgspec.json.encode(inner))


def set_source(media: MediaPart, url: str) -> None:
    """Keep a data URL as its bytes, any other as it is."""
    data = read_data_url(url)
    if data is None:
        media.url = url
    else:
        media.mime, media.data = data


def write_part(part: Part, path: str, own: bool) -> dict[str, Any] | msgspec.Raw | None:
    """Return the content part; None for what belongs to another provider.

    `own` says that raw JSON inside the part is in this format.
    """
    fields: dict[str, Any]
    match part.WhichOneof("kind"):
        case "text":
            fields = {"type": "text", "text": part.text.text}
        case "refusal":
            fields = {"type": "refusal", "refusal": part.refusal.text}
        case "image":
            fields = {"type": "image_url", "image_url": {"url": _url(part.image, path)}}
            if part.image.detail:
                fields["image_url"]["detail"] = part.image.detail
        case "audio":
            kind = part.audio.mime.removeprefix("audio/")
            kind = {"mpeg": "mp3", "x-wav": "wav"}.get(kind, kind)
            if part.audio.WhichOneof("source") != "data":
                raise unsupported(path, "this provider takes audio only as bytes")
            fields = {
                "type": "input_audio",
                "input_audio": {"data": encode_base64(part.audio.data), "format": kind},
            }
        case "document":
            fields = {"type": "file", "file": _file(part.document, path, own)}
        case "video":
            raise unsupported(path, "this provider takes no video")
        case "opaque":
            return raw_of(part.opaque.raw_json) if part.opaque.provider == PROVIDER else None
        case _:
            return None
    if own:
        if part.cache_hint_json:
            fields["cache_control"] = raw_of(part.cache_hint_json)
        merge(fields, part.extension_json)
    return fields


def _url(media: MediaPart, path: str) -> str:
    match media.WhichOneof("source"):
        case "data":
            return write_data_url(media.mime or "image/png", media.data)
        case "url":
            return media.url
    raise unsupported(path, "this provider takes images as a URL or as bytes, not by file id")


def _file(media: MediaPart, path: str, own: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {"filename": media.name} if media.name else {}
    match media.WhichOneof("source"):
        case "data":
            fields["file_data"] = write_data_url(media.mime or "application/pdf", media.data)
            if not own:  # The vendor refuses bytes without a name.
                fields.setdefault(
                    "filename", "document.pdf" if media.mime == "application/pdf" else "document"
                )
            return fields
        case "file_id":
            return {**fields, "file_id": media.file_id}
    raise unsupported(path, "this provider takes documents as bytes or by file id, not by URL")
