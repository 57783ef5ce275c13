"""Images, documents, audio and video: a format and a source."""

from __future__ import annotations

import re
from typing import Any

from omnihub.common.v1.chat_pb2 import MediaPart

from services.formats.errors import unsupported
from services.formats.media import encode_base64

_FORMATS = {
    "image": {"png": "png", "jpeg": "jpeg", "jpg": "jpeg", "gif": "gif", "webp": "webp"},
    "document": {
        "pdf": "pdf",
        "csv": "csv",
        "msword": "doc",
        "vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
        "vnd.ms-excel": "xls",
        "vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
        "html": "html",
        "plain": "txt",
        "markdown": "md",
    },
    "audio": {
        "mp3": "mp3",
        "mpeg": "mp3",
        "opus": "opus",
        "wav": "wav",
        "x-wav": "wav",
        "wave": "wav",
        "aac": "aac",
        "flac": "flac",
        "mp4": "mp4",
        "ogg": "ogg",
        "m4a": "m4a",
        "x-m4a": "m4a",
        "webm": "webm",
    },
    "video": {
        "x-matroska": "mkv",
        "quicktime": "mov",
        "mp4": "mp4",
        "webm": "webm",
        "x-flv": "flv",
        "mpeg": "mpeg",
        "x-ms-wmv": "wmv",
        "3gpp": "three_gp",
    },
}
_MIMES = {"jpeg": "image/jpeg", "png": "image/png", "gif": "image/gif", "webp": "image/webp"}
# What a document's name may not hold, and how long it may be.
_ODD = re.compile(r"[^A-Za-z0-9\s()\[\]-]+")
_SPACES = re.compile(r"\s+")
_NAME_LIMIT = 180


def write_media(kind: str, media: MediaPart, path: str) -> dict[str, Any]:
    """Return an image, audio or video as its block. Raises FormatError for what the provider cannot take."""
    source = _source(kind, media, path)  # What is wrong with it says more than a type that nobody knows.
    return {kind: {"format": _format(kind, media, path), "source": source}}


def write_document(media: MediaPart, path: str, taken: set[str]) -> dict[str, Any]:
    """Return a document as its block, under a name that is legal and not in `taken`; it is added there."""
    block = write_media("document", media, path)
    name = _SPACES.sub(" ", _ODD.sub(" ", media.name.rpartition(".")[0] or media.name)).strip()
    name = name[:_NAME_LIMIT].strip() or "document"
    free, number = name, 2
    while free in taken:
        free, number = f"{name} {number}", number + 1
    taken.add(free)
    block["document"]["name"] = free
    return block


def _format(kind: str, media: MediaPart, path: str) -> str:
    mime = media.mime.partition(";")[0].strip().lower()
    if not mime and kind == "image" and media.WhichOneof("source") == "data":
        return _sniff(media.data)
    word = _FORMATS[kind].get(mime.rpartition("/")[2])
    if word is None:
        known = ", ".join(sorted(set(_FORMATS[kind].values())))
        raise unsupported(path, f"this provider takes no {kind} of type {mime or 'unknown'}; send {known}")
    return word


def _sniff(data: bytes) -> str:
    """Return the format of an image that came without its type."""
    for start, word in ((b"\xff\xd8", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp")):
        if data.startswith(start):
            return word
    return "png"


def _source(kind: str, media: MediaPart, path: str) -> dict[str, Any]:
    match media.WhichOneof("source"):
        case "data":
            return {"bytes": encode_base64(media.data)}
        case "url" if media.url.startswith("s3://"):
            return {"s3Location": {"uri": media.url}}
    raise unsupported(path, f"this provider takes {kind} content as bytes or from s3://; send the bytes")


def mime_of(word: str) -> str:
    """Return the type of an image in an answer."""
    return _MIMES.get(word, "image/png")
