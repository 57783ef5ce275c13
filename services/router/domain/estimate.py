"""How large a request can get, before it is asked."""

from __future__ import annotations

import re
from collections.abc import Iterable

from omnihub.common.v1.chat_pb2 import ChatInput, Part

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


def input_bound(raw_body: bytes, chat: ChatInput) -> int:
    """Return a number of tokens the input does not exceed."""
    return max(1, min(LARGEST, _raw_bound(raw_body) if raw_body else _typed_bound(chat)))


def _raw_bound(body: bytes) -> int:
    tokens = len(body) + (_TOOLS_TOKENS if b'"tools"' in body else 0)
    for found in _MEDIA.finditer(body):
        start, end = found.span("value")
        if _DATA_URL.match(body, start, end) or found["key"] not in _ADDRESSES:
            if _BASE64.fullmatch(body, start, end):
                tokens += _media_tokens(end - start) - (end - start)
        else:
            tokens += _MEDIA_TOKENS
    return tokens


def _typed_bound(chat: ChatInput) -> int:
    tokens = chat.ByteSize() + _FRAME_TOKENS * (len(chat.messages) + len(chat.tools))
    tokens += _TOOLS_TOKENS if chat.tools else 0
    return tokens + sum(_excess(message.parts) for message in chat.messages)


def _excess(parts: Iterable[Part]) -> int:
    """Return how many tokens more than bytes these parts are."""
    excess = 0
    for part in parts:
        kind = part.WhichOneof("kind")
        if kind in ("image", "audio", "video", "document"):
            size = part.ByteSize()
            excess += _media_tokens(size) - size
        elif kind == "tool_result":
            excess += _excess(part.tool_result.parts)
    return excess


def likely_tokens(size: int) -> int:
    """Return about how many tokens this many bytes of text are."""
    return -(-size // _BYTES_PER_TOKEN)
