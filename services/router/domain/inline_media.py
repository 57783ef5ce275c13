"""Media inside the body of a request, which becomes far fewer tokens than it has bytes.

Where it stands decides: the same base64 in the schema of a tool, or in what a tool was called with, is
text to a model, whatever its key is called.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

# Where each kind of content part of the formats that callers speak has its bytes.
_PLACES: dict[Any, tuple[str, ...]] = {
    "image_url": ("image_url", "url"),
    "video_url": ("video_url", "url"),
    "audio_url": ("audio_url", "url"),
    "input_audio": ("input_audio", "data"),
    "file": ("file", "file_data"),
    "input_image": ("image_url",),
    "computer_screenshot": ("image_url",),
    "input_file": ("file_data",),
    "image": ("source", "data"),
    "document": ("source", "data"),
}
# Other documents, such as text or JSON, are read as what they say.
_MEDIA_TYPES = r"(?:image/|audio/|video/|application/pdf\b)"
_BASE64 = r"[A-Za-z0-9+/=_-]*+"
_DATA_URL = re.compile(rf"data:{_MEDIA_TYPES}[^,]{{0,256}}+,{_BASE64}")
_PLAIN = re.compile(_BASE64)
_IS_MEDIA = re.compile(_MEDIA_TYPES)


class _Body(msgspec.Struct):
    messages: Any = None
    input: Any = None


def media_sizes(body: bytes) -> list[int]:
    """Return the length of each piece of media in a body. What cannot be read has none."""
    try:
        read = msgspec.json.decode(body, type=_Body)
    except (msgspec.MsgspecError, RecursionError):
        return []
    found = (_media_of(part) for part in _parts([read.messages, read.input]))
    return [len(value) for value in found if value]


def _parts(contents: list[Any]) -> Iterator[dict[Any, Any]]:
    """Yield content parts, also those of documents and of what tools have answered."""
    while contents:
        content = contents.pop()
        for part in content if isinstance(content, list) else [content]:
            if not isinstance(part, dict):
                continue
            if isinstance(part.get("type"), str):
                yield part
            contents.extend(part[name] for name in ("content", "output") if name in part)
            source = part.get("source")
            if isinstance(source, dict) and source.get("type") == "content":
                contents.append(source.get("content"))


def _media_of(part: dict[Any, Any]) -> str:
    """Return the media of a part as it is written; empty when it has none."""
    value: Any = part
    for name in _PLACES.get(part["type"], ()):
        value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, str):
        return ""
    if _DATA_URL.fullmatch(value):
        return value
    return value if _is_plain(part) and _PLAIN.fullmatch(value) else ""


def _is_plain(part: dict[Any, Any]) -> bool:
    """Tell whether a part has its media without a data URL, and says what it is."""
    if part["type"] == "input_audio":
        return True
    source = part.get("source")
    if not isinstance(source, dict) or source.get("type") != "base64":
        return False
    kind = source.get("media_type")
    return isinstance(kind, str) and _IS_MEDIA.match(kind) is not None
