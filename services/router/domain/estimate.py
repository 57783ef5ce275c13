"""How large a request can get, before it is asked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from omnihub.common.v1.chat_pb2 import ChatInput, MediaPart, Part

from services.router.domain.inline_media import media_sizes

# A token is at least one byte of text, so the bytes of a body bound its tokens. Media is the exception
# both ways: base64 is far longer than the tokens it becomes, and an address is far shorter.
# Quotes inside a text are escaped, so a key that is found here is a key. Every repetition is
# possessive: the search never goes back, however the body is made.
_MEDIA = re.compile(
    rb'"(?P<key>url|image_url|file_data|file_id|data)"\s*+:\s*+"(?P<value>[^"\\]*+(?:\\.[^"\\]*+)*+)"',
    re.DOTALL,
)
# Some writers of JSON escape the slashes.
_BASE64 = re.compile(rb"(?:data:[^,]{0,256}+,)?+(?:[A-Za-z0-9+/=_-]++|\\/)*+")
_DATA_URL = re.compile(rb"data:[^,]{0,256};base64,")
_ADDRESSES = frozenset({b"url", b"image_url", b"file_id"})
_MEDIA_BYTES_PER_TOKEN = 16
_MEDIA_TOKENS = 4096
# Larger than any framing of a message or tool.
_FRAME_TOKENS = 16
# Providers describe tools to the model in words of their own.
_TOOLS_TOKENS = 512
# What the contract's counters hold; no model takes as much.
LARGEST = 2**32 - 1
# Used only where nothing was counted: an estimate, and flagged as one.
_BYTES_PER_TOKEN = 4


def _media_tokens(size: int) -> int:
    return max(_MEDIA_TOKENS, size // _MEDIA_BYTES_PER_TOKEN)


def input_sizes(raw_body: bytes, chat: ChatInput, *, tools: bool = False) -> tuple[int, int]:
    """Return how many tokens the input does not exceed, and about how many it is, which is never more.

    `tools`: the raw body offers tools.
    """
    # Bytes of text, each at most a token, and tokens of media.
    text, media = _raw_sizes(raw_body, tools=tools) if raw_body else _typed_sizes(chat)
    return max(1, min(LARGEST, text + media)), max(1, min(LARGEST, likely_tokens(text) + media))


def input_bound(raw_body: bytes, chat: ChatInput, *, tools: bool = False) -> int:
    """Return how many tokens the input does not exceed."""
    return input_sizes(raw_body, chat, tools=tools)[0]


def _raw_sizes(body: bytes, *, tools: bool) -> tuple[int, int]:
    text = len(body) + (_TOOLS_TOKENS if tools else 0)
    media, inline = 0, False
    for found in _MEDIA.finditer(body):
        start, end = found.span("value")
        if _DATA_URL.match(body, start, end) or found["key"] not in _ADDRESSES:
            if _BASE64.fullmatch(body, start, end):
                if end - start > _MEDIA_TOKENS:
                    inline = True
                else:
                    # Whatever it is, it is no more than that.
                    text -= end - start
                    media += _MEDIA_TOKENS
        else:
            media += _MEDIA_TOKENS
    for size in media_sizes(body) if inline else ():
        if size > _MEDIA_TOKENS:
            text -= size
            media += _media_tokens(size)
    return text, media


def _typed_sizes(chat: ChatInput) -> tuple[int, int]:
    text = chat.ByteSize() + _FRAME_TOKENS * (len(chat.messages) + len(chat.tools))
    text += _TOOLS_TOKENS if chat.tools else 0
    media = 0
    for size in (size for message in chat.messages for size in _media_sizes(message.parts)):
        text -= size
        media += _media_tokens(size)
    return text, media


def _media_sizes(parts: Iterable[Part]) -> Iterator[int]:
    """Yield the bytes of each piece of media, those in results of tools too."""
    for part in parts:
        kind = part.WhichOneof("kind")
        if kind in ("image", "audio", "video") or (kind == "document" and not _is_text(part.document)):
            yield part.ByteSize()
        elif kind == "tool_result":
            yield from _media_sizes(part.tool_result.parts)


def _is_text(document: MediaPart) -> bool:
    """Tell whether a document is read as what it says."""
    return document.WhichOneof("source") == "data" and document.mime != "application/pdf"


def likely_tokens(size: int) -> int:
    """Return about how many tokens this many bytes of text are."""
    return -(-size // _BYTES_PER_TOKEN)
