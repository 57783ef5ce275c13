"""The items of a conversation, both ways.

Items that the assistant made in a row are the parts of one message; every other item is a message of
its own. What an item says about itself stays with its first part under a mark.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import Message, OpaquePart, Part, ToolCall

from services.formats.documents import (
    Fields,
    is_null,
    join,
    merge,
    raw_of,
    read_object,
    read_value,
    says_something,
    starts_with,
    take,
    take_text,
    text_of,
    write_object,
)
from services.formats.errors import invalid
from services.formats.facts import is_filled
from services.formats.messages import account_for, check_tool_message
from services.formats.openai_responses.parts import ITEM, read_parts, write_part
from services.formats.openai_responses.reasoning import seal, unseal
from services.formats.receipts import Receipts

# Marks: an item's own fields; its content was a text or a list; `input` or `instructions` was a text.
OWN_FIELDS, FORM, BARE, INSTRUCTIONS = "@item", "@form", "@input", "@instructions"
# Own fields that say nothing about the conversation itself.
ENVELOPE = frozenset({"type", "id", "status", "phase"})
ITEM_REFERENCE = "item_reference"
_ROLES = frozenset({"user", "assistant", "system", "developer"})
# Items whose names do not tell who made them.
_BY_CALLER = ("_output", "_response", "_trigger", "additional_tools", ITEM_REFERENCE)


def read_input(raw: msgspec.Raw, path: str = "input", *, answer: bool = False) -> list[Message]:
    """Read a text or a list of items; `answer` says that the assistant made them all. Raises FormatError."""
    if starts_with(raw, b'"'):
        message = Message(role="user", content=read_value(raw, str, path))
        message.extension_json[BARE] = "true"
        return [message]
    messages: list[Message] = []
    for index, item in enumerate(read_value(raw, list[msgspec.Raw], path)):
        _read_item(item, f"{path}[{index}]", messages, answer)
    return messages


def kind_of(fields: Mapping[str, msgspec.Raw], path: str) -> str:
    """Return the type of an item, which may go unsaid."""
    raw = fields.get("type")
    if raw is not None and not is_null(raw):
        return read_value(raw, str, join(path, "type"))
    if "role" in fields:
        return "message"
    if "id" in fields:
        return ITEM_REFERENCE
    raise invalid(join(path, "type"), "name the kind of the item, such as message or function_call_output")


def _read_item(raw: msgspec.Raw, path: str, messages: list[Message], answer: bool) -> None:
    fields = read_value(raw, Fields, path)
    kind = kind_of(fields, path)
    match kind:
        case "message":
            _read_message(fields, path, messages)
        case "function_call":
            _assistant(messages).parts.append(_read_call(fields, path))
        case "function_call_output":
            messages.append(_read_output(fields, path))
        case "reasoning":
            _assistant(messages).parts.append(_read_reasoning(raw, fields, path))
        case _:
            part = Part(opaque=OpaquePart(provider=ITEM, raw_json=text_of(raw)))
            if answer or not kind.endswith(_BY_CALLER):
                _assistant(messages).parts.append(part)
            else:
                messages.append(Message(role="user", parts=[part]))


def _assistant(messages: list[Message]) -> Message:
    """Return the assistant's turn that is being read."""
    if not messages or messages[-1].role != "assistant":
        messages.append(Message(role="assistant"))
    return messages[-1]


def _read_message(fields: Fields, path: str, messages: list[Message]) -> None:
    role = take(fields, "role", str, path)
    if role not in _ROLES:
        raise invalid(join(path, "role"), "expected user, assistant, system or developer")
    content = fields.pop("content", None)
    if content is None or is_null(content):
        raise invalid(join(path, "content"), "a message needs content")
    whole, parts = _read_content(content, role, join(path, "content"))
    if role == "assistant":
        parts = parts or [_text(whole)]
        _mark(parts[0].extension_json, fields, content)
        _assistant(messages).parts.extend(parts)
    else:
        message = Message(role=role, content=whole, parts=parts)
        _mark(message.extension_json, fields, content)
        messages.append(message)


def _read_content(raw: msgspec.Raw, role: str, path: str) -> tuple[str, list[Part]]:
    if starts_with(raw, b"["):
        return "", read_parts(raw, role, path)
    return read_value(raw, str, path), []


def _text(text: str) -> Part:
    part = Part()
    part.text.text = text
    part.text.SetInParent()
    return part


def _mark(extension: Any, fields: Fields, content: msgspec.Raw | None = None) -> None:
    """Keep what an item says about itself, and in which form its content came."""
    extension[OWN_FIELDS] = write_object(fields).decode()
    if content is not None:
        extension[FORM] = "list" if starts_with(content, b"[") else "text"
        if extension[FORM] == "list" and not is_filled(content):
            extension[FORM] = "empty"


def _read_call(fields: Fields, path: str) -> Part:
    call = ToolCall(
        id=take_text(fields, "call_id", path),
        name=take_text(fields, "name", path),
        arguments_json=take_text(fields, "arguments", path),
    )
    for name in ("call_id", "name"):
        if not (call.id if name == "call_id" else call.name):
            raise invalid(join(path, name), "a function call needs its call_id and name")
    part = Part(tool_call=call)
    _mark(part.extension_json, fields)
    return part


def _read_output(fields: Fields, path: str) -> Message:
    message = Message(role="tool")
    result = message.parts.add().tool_result
    result.call_id = take_text(fields, "call_id", path)
    if not result.call_id:
        raise invalid(join(path, "call_id"), "say which function call this answers")
    output = fields.pop("output", None)
    if output is None or is_null(output):
        raise invalid(join(path, "output"), "send what the function returned, as text or parts")
    whole, parts = _read_content(output, "user", join(path, "output"))
    result.parts.extend(parts or ([_text(whole)] if whole else []))
    _mark(message.extension_json, fields, output)
    return message


class _Piece(msgspec.Struct):
    text: str | None = None


class _Reasoning(msgspec.Struct):
    summary: list[_Piece] | None = None
    content: list[_Piece] | None = None
    encrypted_content: str | None = None


def _read_reasoning(raw: msgspec.Raw, fields: Fields, path: str) -> Part:
    """Read a thought. The item itself stays beside it: it goes back to its vendor unchanged."""
    read = read_value(raw, _Reasoning, path)
    part = Part()
    part.reasoning.text = "\n\n".join(piece.text or "" for piece in read.summary or read.content or ())
    unseal(read.encrypted_content or "", part.reasoning)
    part.reasoning.SetInParent()
    part.extension_json[OWN_FIELDS] = write_object(fields).decode()
    return part


def call_item(call: ToolCall) -> dict[str, Any]:
    """Return a function call."""
    return {
        "type": "function_call",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments_json,
    }


def reasoning_item(part: Part) -> dict[str, Any]:
    """Return a thought, with what its own vendor needs to take it back."""
    reasoning = part.reasoning
    summary = [{"type": "summary_text", "text": reasoning.text}] if reasoning.text else []
    item: dict[str, Any] = {"type": "reasoning", "summary": summary}
    if encrypted := seal(reasoning):
        item["encrypted_content"] = encrypted
    return item


class ItemWriter:
    """Writes messages as items; what this format has no place for is receipted."""

    def __init__(self, receipts: Receipts, own: bool) -> None:
        self._receipts = receipts
        self._own = own
        """Raw JSON inside the messages is in this format."""

    def write(self, messages: Iterable[Message]) -> list[Any]:
        """Return the items of a conversation. Raises FormatError."""
        items: list[Any] = []
        for index, message in enumerate(messages):
            path = f"messages[{index}]"
            check_tool_message(message, path)
            self._drop(message.extension_json, path)
            if message.role == "assistant":
                items += self.assistant(message, path)
            else:
                items += self._turn(message, path)
        return items

    def _drop(self, extension: Mapping[str, str], path: str) -> None:
        if not self._own:
            for name, text in extension.items():
                if says_something(name, text):
                    self._receipts.dropped(f"{path}.{name}", "it is not part of this provider's items")

    def _account_for(self, part: Part, path: str) -> None:
        if not self._own:
            account_for(part, path, self._receipts)

    def _turn(self, message: Message, path: str) -> list[Any]:
        """Return a system or user turn, or the results of tools, which come first."""
        items: list[Any] = []
        rest: list[Part] = []
        for index, part in enumerate(message.parts):
            kind = part.WhichOneof("kind")
            if kind == "tool_result":
                items.append(self._output(part, message, f"{path}.parts[{index}]"))
            elif kind == "opaque" and part.opaque.provider == ITEM:
                items.append(raw_of(part.opaque.raw_json))
            else:
                rest.append(part)
        if rest or not items:
            role = "user" if message.role == "tool" else message.role
            content = self._list(rest, role, path) if message.parts else message.content
            fields = {"role": role, "content": content}
            items.append(self._restored(fields, message.extension_json))
        if message.name and message.role != "tool":
            self._receipts.dropped(f"{path}.name", "this provider's messages have no name")
        return items

    def _restored(self, fields: dict[str, Any], marks: Mapping[str, str]) -> dict[str, Any]:
        """Put back what an item said about itself."""
        if not self._own or OWN_FIELDS not in marks:
            return fields
        if marks.get(FORM) == "empty":
            fields["content" if "role" in fields else "output"] = []
        own = read_object(marks[OWN_FIELDS].encode())
        return merge(fields, {name: text_of(raw) for name, raw in own.items()})

    def _output(self, part: Part, message: Message, path: str) -> dict[str, Any]:
        result = part.tool_result
        self._account_for(part, path)
        if result.is_error:
            self._receipts.translated(
                f"{path}.is_error", "this format has no mark for failed tools; the text stays"
            )
        form = message.extension_json.get(FORM) if self._own else None
        output: Any = self._list(result.parts, "user", path)
        texts = [piece.text.text for piece in result.parts]
        if form == "text" or (form is None and len(texts) == len(output) <= 1 and _plain(output)):
            output = "".join(texts)
        fields = {"type": "function_call_output", "call_id": result.call_id, "output": output}
        return self._restored(fields, message.extension_json if message.role == "tool" else {})

    def assistant(self, message: Message, path: str = "message") -> list[Any]:
        """Return the items of an assistant's turn, in the order of its parts."""
        items: list[Any] = []
        if message.content:
            items.append({"role": "assistant", "content": message.content})
        content: list[tuple[int, Part]] = []
        for index, part in enumerate(message.parts):
            kind = part.WhichOneof("kind")
            apart = kind in ("tool_call", "reasoning") or (kind == "opaque" and part.opaque.provider == ITEM)
            if apart or (self._own and OWN_FIELDS in part.extension_json):
                items += self._said(content, path)
                content = []
            if apart:
                items += self._apart(part, kind or "", f"{path}.parts[{index}]")
            else:
                content.append((index, part))
        return items + self._said(content, path)

    def _apart(self, part: Part, kind: str, path: str) -> list[Any]:
        """Return a part that is an item of its own."""
        if kind == "opaque":
            return [raw_of(part.opaque.raw_json)]
        if kind == "tool_call":
            self._account_for(part, path)
            return [self._restored(call_item(part.tool_call), part.extension_json)]
        if self._own and OWN_FIELDS in part.extension_json:
            return [raw_of(part.extension_json[OWN_FIELDS])]
        if part.reasoning.redacted or part.reasoning.signature or not part.reasoning.encrypted:
            self._receipts.dropped(path, "reasoning goes back only to the provider it came from")
            return []
        return [reasoning_item(part)]

    def _said(self, content: Sequence[tuple[int, Part]], path: str) -> list[Any]:
        """Return the message of the assistant that holds this content; none without content."""
        if not content:
            return []
        marks = content[0][1].extension_json
        written: Any = self._list([part for _, part in content], "assistant", path, content[0][0])
        form = marks.get(FORM) if self._own else None
        if form == "text" or (form is None and len(content) == 1 and _plain(written)):
            written = content[0][1].text.text
        fields = {"role": "assistant", "content": written}
        return [self._restored(fields, marks)] if written or form else []

    def _list(self, parts: Sequence[Part], role: str, path: str, first: int = 0) -> list[Any]:
        written = []
        for index, part in enumerate(parts, first):
            name = f"{path}.content[{index}]"
            piece = write_part(part, role, name, self._own)
            if piece is None:
                self._receipts.dropped(name, "it can only be read by the provider it came from")
                continue
            self._account_for(part, name)
            written.append(piece)
        return written


def _plain(written: Sequence[Any]) -> bool:
    """Tell whether content is text and nothing else."""
    return all(isinstance(piece, dict) and piece.keys() == {"type", "text"} for piece in written)
