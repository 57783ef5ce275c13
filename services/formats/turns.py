"""What routing reads of a conversation in a foreign format: its beginning, its last words, what it needs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from services.formats.documents import starts_with

# The first user message is among these; what comes later is no beginning.
_OPENING_TURNS = 8
# How far back the last words of the user are looked for.
_LATEST_TURNS = 6

# Quotes inside a text are escaped, so what is found here is no text.
_KINDS = re.compile(
    rb'"type"\s*+:\s*+"(image|image_url|input_image|input_audio|audio|file|input_file|document)"'
)
_CAPABILITIES = {
    b"image": "vision",
    b"image_url": "vision",
    b"input_image": "vision",
    b"input_audio": "audio",
    b"audio": "audio",
    b"file": "documents",
    b"input_file": "documents",
    b"document": "documents",
}
_REASONING = re.compile(
    rb'"reasoning_effort"\s*+:\s*+"(?!none")'
    rb'|"thinking"\s*+:\s*+\{\s*+"type"\s*+:\s*+"(?:enabled|adaptive)"'
    rb'|"reasoning"\s*+:\s*+\{[^{}"]{0,64}+"effort"\s*+:\s*+"(?!none")'
)


class Turns(NamedTuple):
    """What is read of a conversation."""

    beginning: bytes
    """Up to the first user message: the same in every later request of the conversation."""
    instructions: str
    """The system's words at the beginning, as far as they are part of the messages."""
    latest: str
    """The user's last words."""
    returns_results: bool
    """It ends with the result of a tool: an agent goes on."""


class _Turn(msgspec.Struct):
    role: str | None = None
    type: str | None = None
    content: msgspec.Raw = msgspec.Raw(b"")


class _Piece(msgspec.Struct):
    type: str | None = None
    text: str | None = None


_list = msgspec.json.Decoder(list[msgspec.Raw])
_turn = msgspec.json.Decoder(_Turn)
_text = msgspec.json.Decoder(str)
_pieces = msgspec.json.Decoder(list[_Piece])
_RESULTS = frozenset({"tool", "function"})
_RESULT_TYPES = frozenset({"function_call_output", "tool_result"})


def read_turns(messages: msgspec.Raw) -> Turns:
    """Return what a raw conversation says. What cannot be read says nothing: its provider refuses it."""
    if starts_with(messages, b'"'):
        return Turns(bytes(messages), "", _text_in(messages), False)
    try:
        turns = _list.decode(messages)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Turns(b"", "", "", False)
    instructions = ""
    opening = turns[:_OPENING_TURNS]
    for position, raw in enumerate(opening):
        turn = _read(raw)
        if turn.role == "user":
            opening = turns[: position + 1]
            break
        if turn.role in ("system", "developer") and not instructions:
            instructions = _text_in(turn.content)
    latest, returns = _latest(turns)
    return Turns(b"\n".join(bytes(raw) for raw in opening), instructions, latest, returns)


def _latest(turns: Sequence[msgspec.Raw]) -> tuple[str, bool]:
    """Return the user's last words, and whether a tool spoke after them."""
    returns = False
    for raw in reversed(turns[-_LATEST_TURNS:]):
        turn = _read(raw)
        if turn.role in _RESULTS or turn.type in _RESULT_TYPES:
            returns = True
        elif turn.role == "user":
            pieces = _pieces_in(turn.content)
            if any(piece.type in _RESULT_TYPES for piece in pieces):
                returns = True
            elif text := _text_in(turn.content):
                return text, returns
    return "", returns


def _read(raw: msgspec.Raw) -> _Turn:
    try:
        return _turn.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Turn()


def _pieces_in(content: msgspec.Raw) -> list[_Piece]:
    try:
        return _pieces.decode(content) if starts_with(content, b"[") else []
    except (msgspec.DecodeError, UnicodeDecodeError):
        return []


def _text_in(content: msgspec.Raw) -> str:
    if starts_with(content, b'"'):
        try:
            return _text.decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return ""
    return "\n".join(piece.text for piece in _pieces_in(content) if piece.text)


def needed_capabilities(body: bytes, *, tools: bool, json: bool) -> set[str]:
    """Return what a model must be able to do for a body in a foreign format."""
    needed = {_CAPABILITIES[kind] for kind in _KINDS.findall(body)}
    if tools:
        needed.add("tools")
    if json:
        needed.add("json_schema")
    if _REASONING.search(body):
        needed.add("reasoning")
    return needed
