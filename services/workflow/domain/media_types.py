"""What files may be: the types that are taken in, and those that a browser may show."""

from __future__ import annotations

from collections.abc import Mapping

UNKNOWN = "application/octet-stream"
TEXT = "text/plain"

# Other names of the same thing.
_SAME: Mapping[str, str] = {
    "audio/wave": "audio/wav",
    "audio/x-wav": "audio/wav",
    "audio/vnd.wave": "audio/wav",
    "audio/mp3": "audio/mpeg",
    "audio/x-mp3": "audio/mpeg",
    "audio/x-flac": "audio/flac",
    "audio/x-m4a": "audio/mp4",
    "audio/m4a": "audio/mp4",
    "audio/aac": "audio/aac",
    "audio/ogg": "audio/ogg",
    "audio/opus": "audio/ogg",
    "video/ogg": "audio/ogg",
    "application/ogg": "audio/ogg",
    "audio/webm": "video/webm",
    "application/x-matroska": "video/webm",
    "image/jpg": "image/jpeg",
    "image/x-ms-bmp": "image/bmp",
    "video/x-m4v": "video/mp4",
    "application/x-zip-compressed": "application/zip",
}
TEXTS = frozenset({TEXT, "application/json", "text/csv", "application/jsonl", "application/x-ndjson"})
_IMAGES = frozenset(
    {"image/png", "image/jpeg", "image/webp", "image/gif", "image/avif", "image/bmp", "image/tiff"}
)
_SOUNDS = frozenset({"audio/wav", "audio/mpeg", "audio/ogg", "audio/flac", "audio/mp4", "audio/aac"})
_FILMS = frozenset({"video/mp4", "video/quicktime", "video/webm"})
_OTHERS = frozenset({"application/pdf", "application/zip", "application/json", TEXT})

ALLOWED = _IMAGES | _SOUNDS | _FILMS | _OTHERS
# Nothing in these can run in a browser. Whatever else there is, such as SVG, is only ever downloaded.
SHOWN = (_IMAGES - {"image/tiff", "image/bmp"}) | _SOUNDS | _FILMS
# Never what a provider was asked for.
NEVER = frozenset({"text/html"})
ZIPPED_PREFIXES = ("application/vnd.openxmlformats", "application/vnd.oasis", "application/epub")


def canonical(mime: str) -> str:
    """Return the one name of a type, without parameters."""
    plain = mime.partition(";")[0].strip().lower()
    if plain.startswith(ZIPPED_PREFIXES):
        return "application/zip"
    return _SAME.get(plain, plain)


def agrees(said: str, found: str) -> bool:
    """Tell whether a content may be what its sender says it is. Films and sounds share their containers."""
    said = canonical(said)
    if said in ("", UNKNOWN, found):
        return True
    if said in TEXTS and found in TEXTS:
        return True
    containers = ({"audio/mp4", "video/mp4", "video/quicktime"}, {"audio/ogg"}, {"image/avif", "image/heic"})
    return any(said in same and found in same for same in containers)


def fits(found: str, wanted: str) -> bool:
    """Tell whether a type is one of `image`, `audio`, `media` (an image or a film) or `any`."""
    if wanted == "any":
        return found in ALLOWED
    families = {"image": _IMAGES, "audio": _SOUNDS | _FILMS, "media": _IMAGES | _FILMS}
    return found in families[wanted]
