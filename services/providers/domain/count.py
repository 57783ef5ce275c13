"""How many tokens a conversation is, where the provider does not count: an estimate, and flagged as one."""

from __future__ import annotations

from collections.abc import Iterable

from omnihub.common.v1.chat_pb2 import ChatInput, Part, Tool

# Characters per token of ordinary English text.
_CHARS_PER_TOKEN = 4
# What frames a message, a tool call or a tool.
_FRAME_TOKENS = 4
# An image of ordinary size, as the vendors count it.
_IMAGE_TOKENS = 1600
# A page or a minute of anything else is far shorter as tokens than as bytes.
_MEDIA_BYTES_PER_TOKEN = 64


def estimate_input(chat: ChatInput) -> int:
    """Return about how many tokens a conversation and its tools are, at least one."""
    chars = sum(len(message.content) + len(message.name) for message in chat.messages)
    tokens = _FRAME_TOKENS * (len(chat.messages) + len(chat.tools))
    for message in chat.messages:
        part_chars, part_tokens = _parts(message.parts)
        chars, tokens = chars + part_chars, tokens + part_tokens
    chars += sum(map(_tool_chars, chat.tools)) + len(chat.response_schema_json)
    return max(1, tokens + -(-chars // _CHARS_PER_TOKEN))


def _tool_chars(tool: Tool) -> int:
    return len(tool.name) + len(tool.description) + len(tool.parameters_json) + len(tool.raw_json)


def _parts(parts: Iterable[Part]) -> tuple[int, int]:
    """Return the characters of parts, and the tokens that are not characters."""
    chars, tokens = 0, 0
    for part in parts:
        match part.WhichOneof("kind"):
            case "text":
                chars += len(part.text.text)
            case "reasoning":
                chars += len(part.reasoning.text)
            case "refusal":
                chars += len(part.refusal.text)
            case "opaque":
                chars += len(part.opaque.raw_json)
            case "tool_call":
                chars += len(part.tool_call.name) + len(part.tool_call.arguments_json)
                tokens += _FRAME_TOKENS
            case "tool_result":
                more = _parts(part.tool_result.parts)
                chars, tokens = chars + more[0], tokens + more[1] + _FRAME_TOKENS
            case "image":
                tokens += _IMAGE_TOKENS
            case "document" | "audio" | "video":
                tokens += max(_IMAGE_TOKENS, part.ByteSize() // _MEDIA_BYTES_PER_TOKEN)
    return chars, tokens
