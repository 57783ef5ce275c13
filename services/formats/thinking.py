"""What vendors that sign thoughts want of a conversation: a call comes back with the thoughts before it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from omnihub.common.v1.chat_pb2 import Message, ReasoningPart

from services.formats.details import is_sealed


class _Thinking(msgspec.Struct):
    type: str = ""


def called_without_thoughts(messages: Sequence[Message]) -> bool:
    """Tell whether the last answer called a tool, and none of its thoughts can go back beside the call."""
    last = next((message for message in reversed(messages) if message.role == "assistant"), None)
    if last is None or not any(part.HasField("tool_call") for part in last.parts):
        return False
    return not any(_is_signed(part.reasoning) for part in last.parts)


def _is_signed(reasoning: ReasoningPart) -> bool:
    return bool(reasoning.redacted or reasoning.signature) and not is_sealed(reasoning)


def thinks_before_calls(thinking: str) -> bool:
    """Tell whether a `thinking` parameter makes its vendor refuse calls that come back without thoughts.

    With a budget it does; what is adaptive takes a conversation as it is.
    """
    try:
        return msgspec.json.decode(thinking, type=_Thinking).type == "enabled"
    except msgspec.DecodeError:
        return False
