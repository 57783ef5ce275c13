"""How large a request can get, before it is asked."""

from __future__ import annotations

import re

from omnihub.common.v1.chat_pb2 import ChatInput, Part

# A token is at least one byte of text, so the bytes of a body bound its tokens. Media in a body is
# base64, which is far longer than the tokens it becomes.
_MEDIA = re.compile(rb'"[^"]{0,64}?[A-Za-z0-9+/=]{4096,}"')
_MEDIA_BYTES_PER_TOKEN = 16
_MEDIA_TOKENS = 4096
# Larger than any message's framing.
_MESSAGE_TOKENS = 8
# Used only where nothing was counted: an estimate, and flagged as one.
_BYTES_PER_TOKEN = 4


def _media_tokens(size: int) -> int:
    return max(_MEDIA_TOKENS, size // _MEDIA_BYTES_PER_TOKEN)


def input_bound(raw_body: bytes, chat: ChatInput) -> int:
    """Return a number of tokens the input does not exceed."""
    if not raw_body:
        return _typed_bound(chat)
    tokens = len(raw_body)
    if tokens > _MEDIA_TOKENS:
        for found in _MEDIA.finditer(raw_body):
            size = found.end() - found.start()
            tokens += _media_tokens(size) - size
    return max(1, tokens)


def _typed_bound(chat: ChatInput) -> int:
    tokens = sum(tool.ByteSize() for tool in chat.tools)
    for message in chat.messages:
        tokens += _MESSAGE_TOKENS + len(message.content.encode())
        tokens += sum(_part_bound(part) for part in message.parts)
    return max(1, tokens)


def _part_bound(part: Part) -> int:
    kind = part.WhichOneof("kind")
    if kind in ("image", "audio", "video", "document"):
        return _media_tokens(part.ByteSize())
    return part.ByteSize()


def likely_tokens(size: int) -> int:
    """Return about how many tokens this many bytes of text are."""
    return -(-size // _BYTES_PER_TOKEN)
