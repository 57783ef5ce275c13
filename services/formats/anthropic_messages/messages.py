"""The turns of a conversation, both ways."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import Message, Part

from services.formats.anthropic_messages.blocks import PROVIDER, read_blocks, write_block
from services.formats.details import is_sealed
from services.formats.documents import (
    Fields,
    is_null,
    is_object,
    join,
    keep,
    merge,
    read_value,
    says_something,
    starts_with,
    take,
)
from services.formats.errors import invalid
from services.formats.messages import account_for, check_tool_message, is_foreign
from services.formats.receipts import Receipts

# Marks a system message that stood among the turns instead of in `system`.
INLINE = "@inline"
_ROLES = frozenset({"user", "assistant", "system"})
_SYSTEM = frozenset({"system", "developer"})


def read_system(raw: msgspec.Raw) -> Message:
    """Read the top-level `system`."""
    message = Message(role="system")
    _fill(message, raw, "system")
    return message


def read_message(raw: msgspec.Raw, path: str) -> Message:
    """Read one message. Raises FormatError naming the field that is wrong."""
    fields = read_value(raw, Fields, path)
    role = take(fields, "role", str, path)
    if role not in _ROLES:
        raise invalid(join(path, "role"), "expected user or assistant; instructions belong into `system`")
    message = Message(role=role)
    content = fields.pop("content", None)
    if content is None or is_null(content):
        raise invalid(join(path, "content"), "a message needs content")
    _fill(message, content, join(path, "content"))
    if not message.parts and not message.content:
        fields["content"] = content  # Empty, in the form it came in.
    if role == "system":
        message.extension_json[INLINE] = "true"
    keep(fields, message.extension_json)
    return message


def _fill(message: Message, raw: msgspec.Raw, path: str) -> None:
    if starts_with(raw, b'"'):
        message.content = read_value(raw, str, path)
    else:
        message.parts.extend(read_blocks(raw, path))


class MessageWriter:
    """Writes messages as this format has them; what it has no place for is receipted."""

    def __init__(self, receipts: Receipts, own: bool) -> None:
        self._receipts = receipts
        self._own = own
        """Raw JSON inside the messages is in this format."""
        self._system: list[Any] = []
        self._system_text: str | None = None

    def write(self, messages: Iterable[Message]) -> tuple[str | list[Any] | None, list[dict[str, Any]]]:
        """Return the top-level `system` and the turns."""
        turns: list[dict[str, Any]] = []
        after_tools = False
        for index, message in enumerate(messages):
            path = f"messages[{index}]"
            self._drop_extension(message.extension_json, path)
            if message.name and message.role != "tool":
                self._receipts.dropped(f"{path}.name", "this provider's messages have no name")
            if message.role in _SYSTEM and INLINE not in message.extension_json:
                self._add_system(message, path, late=bool(turns))
                continue
            check_tool_message(message, path)
            content = self._content(message, path)
            role = "user" if message.role == "tool" else message.role
            if after_tools and role == "user":
                self._append(turns[-1], content)
            elif content or (self._own and not message.parts):
                turn: dict[str, Any] = {"role": role, "content": content}
                turns.append(merge(turn, message.extension_json) if self._own else turn)
            after_tools = message.role == "tool"
        return self._system_text or self._system or None, turns

    def _append(self, turn: dict[str, Any], content: str | list[Any]) -> None:
        """Add to the turn that holds the results of tools: all parallel results go back together, first."""
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        turn["content"].extend(blocks)

    def _drop_extension(self, extension: Mapping[str, str], path: str) -> None:
        if not self._own:
            for name, text in extension.items():
                if says_something(name, text):
                    self._receipts.dropped(f"{path}.{name}", "it is not part of this provider's messages")

    def _add_system(self, message: Message, path: str, late: bool) -> None:
        if late:
            self._receipts.translated(f"{path}.role", "instructions in mid-conversation moved to `system`")
        elif message.role == "developer":
            self._receipts.translated(f"{path}.role", "developer instructions are given as `system`")
        first = self._system_text is None and not self._system
        if first and not message.parts:
            self._system_text = message.content
            return
        if self._system_text is not None:
            self._system.append({"type": "text", "text": self._system_text})
            self._system_text = None
        content = self._content(message, path)
        self._append({"content": self._system}, content)

    def _content(self, message: Message, path: str) -> str | list[Any]:
        if not message.parts:
            return message.content
        blocks = []
        for index, part in enumerate(message.parts):
            name = f"{path}.content[{index}]"
            block = None if is_sealed(part.reasoning) else write_block(part, name, self._own)
            if block is None:
                if part.WhichOneof("kind") != "text":
                    self._receipts.dropped(name, "it can only be read by the provider it came from")
                continue
            self._flag(part, name)
            blocks.append(block)
        return blocks

    def _flag(self, part: Part, name: str) -> None:
        if not self._own:
            account_for(part, name, self._receipts, caches=True)
        kind = part.WhichOneof("kind")
        if (
            kind == "tool_call"
            and part.tool_call.arguments_json
            and not is_object(part.tool_call.arguments_json)
        ):
            self._receipts.translated(
                f"{name}.input", "the model's arguments are no JSON object; sent as a string"
            )
        if kind == "tool_call" and part.tool_call.signature:
            self._receipts.dropped(f"{name}.signature", "it goes back only to the provider it came from")
        for index, piece in enumerate(part.tool_result.parts):
            inner = f"{name}.content[{index}]"
            if not is_foreign(piece, inner, self._receipts, PROVIDER):
                self._flag(piece, inner)
        if kind == "image" and part.image.detail not in {"", "auto"}:
            self._receipts.dropped(f"{name}.detail", "this provider has no level of detail")
