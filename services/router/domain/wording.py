"""What the planner reads of a request: the words that tell its task, and what it needs. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from omnihub.common.v1.chat_pb2 import ChatInput, Message, Part

from services.formats.turns import Turns

_KINDS = {"image": "vision", "audio": "audio", "video": "vision", "document": "documents"}


def typed_turns(chat: ChatInput) -> Turns:
    """Return what a typed conversation says; see services.formats.turns."""
    messages = chat.messages
    beginning = []
    instructions = ""
    for message in messages:
        beginning.append(message.SerializeToString(deterministic=True))
        if message.role == "user":
            break
        if message.role in ("system", "developer") and not instructions:
            instructions = _text(message)
    returns = False
    for message in reversed(messages):
        if message.role == "tool" or any(part.HasField("tool_result") for part in message.parts):
            returns = True
        elif message.role == "user" and (text := _text(message)):
            return Turns(b"\n".join(beginning), instructions, text, returns)
    return Turns(b"\n".join(beginning), instructions, "", returns)


def _text(message: Message) -> str:
    return message.content or "\n".join(part.text.text for part in message.parts if part.HasField("text"))


def typed_capabilities(chat: ChatInput, *, json: bool) -> set[str]:
    """Return what a model must be able to do for a typed conversation."""
    needed = set(_of_parts(part for message in chat.messages for part in message.parts))
    if chat.tools:
        needed.add("tools")
    if json:
        needed.add("json_schema")
    if chat.reasoning_effort not in ("", "none"):
        needed.add("reasoning")
    return needed


def _of_parts(parts: Iterable[Part]) -> Iterable[str]:
    for part in parts:
        kind = part.WhichOneof("kind") or ""
        if kind in _KINDS:
            yield _KINDS[kind]
        elif kind == "tool_result":
            yield from _of_parts(part.tool_result.parts)
