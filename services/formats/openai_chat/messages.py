"""The turns of a conversation, both ways."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
from omnihub.common.v1.chat_pb2 import Message, OpaquePart, Part, ToolCall, ToolResult

from services.formats.details import is_sealed, write_detail
from services.formats.documents import (
    Fields,
    is_null,
    join,
    keep,
    merge,
    raw_of,
    read_value,
    says_something,
    starts_with,
    take,
    take_text,
    text_of,
)
from services.formats.errors import invalid
from services.formats.messages import account_for, check_tool_message
from services.formats.openai_chat.parts import read_parts, write_part
from services.formats.receipts import Receipts

# Opaque parts that stand among the tool calls of a message.
PROVIDER_TOOL_CALL = "openai.tool_calls"
# How OpenAI-shaped clients carry the signature of a call, and the mark that one did.
_EXTRA = "extra_content"
_SIGNED = "@signature"
# Names the field of an answer that held a thought; empty when the message's own fields hold it.
FIELD = "@field"
# Where an answer's thoughts are, as text and with details.
REASONING_FIELDS = ("reasoning_content", "reasoning")
DETAILS_FIELD = "reasoning_details"
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})


def read_message(raw: msgspec.Raw, path: str) -> Message:
    """Read one message. Raises FormatError naming the field that is wrong."""
    fields = read_value(raw, Fields, path)
    role = take(fields, "role", str, path)
    if not role:
        raise invalid(join(path, "role"), "say who speaks: system, developer, user, assistant or tool")
    message = Message(role=role, name=take_text(fields, "name", path))
    if role == "function":  # The old name of a tool; its results go by name instead of id.
        message.role = "tool"
        fields["role"] = msgspec.Raw(b'"function"')
    elif role not in _ROLES:
        raise invalid(join(path, "role"), "expected system, developer, user, assistant or tool")
    if message.role == "tool":
        _read_tool_result(fields, message, path)
    elif role == "assistant":
        _read_assistant(fields, message, path)
    else:
        _read_content(fields, message, path)
        if not message.parts and not message.content and "content" not in fields:
            raise invalid(join(path, "content"), "a message needs content")
    keep(fields, message.extension_json)
    return message


def _read_content(fields: Fields, message: Message, path: str) -> None:
    """Take `content`: a string, or a list of parts. What is null or empty stays behind."""
    raw = fields.get("content")
    if raw is None or is_null(raw):
        return
    path = join(path, "content")
    if starts_with(raw, b"["):
        message.parts.extend(read_parts(raw, path))
    else:
        message.content = read_value(raw, str, path)
    if message.parts or message.content:
        del fields["content"]


def _read_assistant(fields: Fields, message: Message, path: str) -> None:
    _read_content(fields, message, path)
    refusal = take_text(fields, "refusal", path)
    calls = take(fields, "tool_calls", list[msgspec.Raw], path)
    if not refusal and not calls:
        if calls is not None:
            fields["tool_calls"] = msgspec.Raw(b"[]")
        return
    if message.content:
        message.parts.add().text.text = message.content
        message.content = ""
    if refusal:
        message.parts.add().refusal.text = refusal
    for index, raw in enumerate(calls or ()):
        message.parts.append(_read_tool_call(raw, f"{path}.tool_calls[{index}]"))


def _read_tool_call(raw: msgspec.Raw, path: str) -> Part:
    fields = read_value(raw, Fields, path)
    kind = take(fields, "type", str, path)
    function = take(fields, "function", Fields, path)
    if function is None or kind not in {"function", None}:
        return Part(opaque=OpaquePart(provider=PROVIDER_TOOL_CALL, raw_json=text_of(raw)))
    inner = join(path, "function")
    call = ToolCall(
        id=take_text(fields, "id", path),
        name=take_text(function, "name", inner),
        arguments_json=take_text(function, "arguments", inner),
    )
    part = Part(tool_call=call)
    if (signature := _signature_of(fields.get(_EXTRA))) is not None:
        del fields[_EXTRA]
        part.tool_call.signature = signature
        part.extension_json[_SIGNED] = "true"
    if function:
        fields["function"] = msgspec.Raw(msgspec.json.encode(function))
    keep(fields, part.extension_json)
    return part


class _Signature(msgspec.Struct, forbid_unknown_fields=True):
    thought_signature: Annotated[str, msgspec.Meta(min_length=1)]


class _Extra(msgspec.Struct, forbid_unknown_fields=True):
    google: _Signature


def _signature_of(raw: msgspec.Raw | None) -> str | None:
    """Return the signature that a call carries, None when there is none or more than that."""
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=_Extra).google.thought_signature
    except msgspec.ValidationError:
        return None


def write_signature(fields: dict[str, Any], signature: str) -> None:
    """Add the signature to a call, so that the client sends it back."""
    fields[_EXTRA] = {"google": {"thought_signature": signature}}


def _read_tool_result(fields: Fields, message: Message, path: str) -> None:
    result = ToolResult(call_id=take_text(fields, "tool_call_id", path), name=message.name)
    if not result.call_id and "role" not in fields and "tool_call_id" not in fields:
        raise invalid(join(path, "tool_call_id"), "say which tool call this answers")
    content = Message()
    _read_content(fields, content, path)
    if content.content:
        result.parts.add().text.text = content.content
    result.parts.extend(content.parts)
    message.parts.add().tool_result.CopyFrom(result)


class MessageWriter:
    """Writes messages as this format has them; what it has no place for is receipted."""

    def __init__(self, receipts: Receipts, own: bool, details: bool = False) -> None:
        self._receipts = receipts
        self._own = own
        """Raw JSON inside the messages is in this format."""
        self._details = details
        """The provider takes back thoughts that came with details."""

    def write(self, messages: Iterable[Message]) -> list[dict[str, Any]]:
        """Return the messages; tool results become messages of their own."""
        written: list[dict[str, Any]] = []
        for index, message in enumerate(messages):
            path = f"messages[{index}]"
            check_tool_message(message, path)
            self._drop_extension(message.extension_json, path)
            if message.role == "assistant":
                written.append(self.assistant(message, path))
            else:
                written.extend(self._turn(message, path))
        return written

    def _drop_extension(self, extension: Mapping[str, str], path: str) -> None:
        if not self._own:
            for name, text in extension.items():
                if says_something(name, text):
                    self._receipts.dropped(f"{path}.{name}", "it is not part of this provider's messages")

    def _account_for(self, part: Part, path: str) -> None:
        if not self._own:
            account_for(part, path, self._receipts)

    def _turn(self, message: Message, path: str) -> list[dict[str, Any]]:
        """Return a system or user turn, or the results of tools, which come first."""
        written: list[dict[str, Any]] = []
        rest: list[Part] = []
        for index, part in enumerate(message.parts):
            if part.WhichOneof("kind") == "tool_result":
                name = f"{path}.parts[{index}]"
                self._account_for(part, name)
                document, media = self._tool_result(part, message, name)
                written.append(document)
                rest.extend(media)
            else:
                rest.append(part)
        if rest or not written:
            role = "user" if message.role == "tool" else message.role
            written.append(self._plain(message, role, rest, path))
        return written

    def _plain(self, message: Message, role: str, parts: Sequence[Part], path: str) -> dict[str, Any]:
        fields: dict[str, Any] = {"role": role}
        if parts:
            fields["content"] = self._content(parts, path) or ""
        else:
            fields["content"] = message.content
        if message.name:
            fields["name"] = message.name
        return merge(fields, message.extension_json) if self._own else fields

    def _tool_result(self, part: Part, message: Message, path: str) -> tuple[dict[str, Any], list[Part]]:
        """Return the message of one result, and the media it holds, which only a user may send."""
        result = part.tool_result
        texts = [piece for piece in result.parts if piece.WhichOneof("kind") == "text"]
        media = [piece for piece in result.parts if piece.WhichOneof("kind") != "text"]
        if media and not self._own:
            self._receipts.translated(f"{path}.content", "media of a tool result follow as a user message")
        if result.is_error:
            self._receipts.translated(
                f"{path}.is_error", "this format has no mark for failed tools; the text stays"
            )
        if self._own and media:
            texts, media = list(result.parts), []
        fields: dict[str, Any] = {"role": "tool", "tool_call_id": result.call_id}
        fields["content"] = self._text_or_parts(texts, path) or ""
        if message.name:
            fields["name"] = message.name
        if self._own and message.role == "tool":
            if message.extension_json.get("role"):
                del fields["tool_call_id"]
            merge(fields, message.extension_json)
        return fields, media

    def assistant(self, message: Message, path: str = "message", reasoning: bool = False) -> dict[str, Any]:
        """Return an assistant's turn. `reasoning` keeps its thoughts, as an answer has them."""
        bare = not message.parts and not message.extension_json
        fields: dict[str, Any] = {"role": "assistant", "content": message.content or ("" if bare else None)}
        content: list[Part] = []
        calls: list[Any] = []
        for index, part in enumerate(message.parts):
            match part.WhichOneof("kind"):
                case "tool_call":
                    calls.append(self._tool_call(part, f"{path}.parts[{index}]"))
                case "opaque" if part.opaque.provider == PROVIDER_TOOL_CALL:
                    calls.append(raw_of(part.opaque.raw_json))
                case "reasoning":
                    self._reasoning(fields, part, f"{path}.parts[{index}]", reasoning)
                case _:
                    content.append(part)
        self._assistant_content(fields, content, path)
        if message.name:
            fields["name"] = message.name
        if calls:
            fields["tool_calls"] = calls
        return merge(fields, self._beside(message, reasoning)) if self._own else fields

    def _beside(self, message: Message, keep_thoughts: bool) -> Mapping[str, str]:
        """Return what travels on beside the parts: thoughts that are parts, too, only where those may go."""
        extension = message.extension_json
        if keep_thoughts or self._details or not any(is_sealed(part.reasoning) for part in message.parts):
            return extension
        thoughts = (*REASONING_FIELDS, DETAILS_FIELD)
        return {name: text for name, text in extension.items() if name not in thoughts}

    def _assistant_content(self, fields: dict[str, Any], content: list[Part], path: str) -> None:
        refusals = [part for part in content if part.WhichOneof("kind") == "refusal"]
        if len(refusals) == 1 and len(content) <= 2 and not refusals[0].extension_json:
            fields["refusal"] = refusals[0].refusal.text
            content.remove(refusals[0])
        if content:
            fields["content"] = self._text_or_parts(content, path)

    def _reasoning(self, fields: dict[str, Any], part: Part, path: str, keep_it: bool) -> None:
        detail = write_detail(part.reasoning) if self._details and not keep_it else None
        if detail is not None:
            fields.setdefault(DETAILS_FIELD, []).append(detail)
        elif keep_it and part.reasoning.text:
            if name := part.extension_json.get(FIELD, "reasoning_content"):
                fields[name] = fields.get(name, "") + part.reasoning.text
        elif not keep_it:
            self._receipts.dropped(path, "reasoning goes back only to the provider it came from")

    def _tool_call(self, part: Part, path: str) -> dict[str, Any]:
        self._account_for(part, path)
        call = part.tool_call
        fields: dict[str, Any] = {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments_json},
        }
        if call.signature and (not self._own or _SIGNED in part.extension_json):
            write_signature(fields, call.signature)
        elif call.signature:
            self._receipts.dropped(f"{path}.signature", "it goes back only to the provider it came from")
        return merge(fields, part.extension_json) if self._own else fields

    def _text_or_parts(self, parts: Sequence[Part], path: str) -> Any:
        """Return one plain text as a string, anything else as a list; None when nothing is left."""
        written = self._content(parts, path)
        if len(written) == 1 and isinstance(written[0], dict) and written[0].keys() == {"type", "text"}:
            return written[0]["text"]
        return written or None

    def _content(self, parts: Sequence[Part], path: str) -> list[Any]:
        written = []
        for index, part in enumerate(parts):
            name = f"{path}.content[{index}]"
            piece = write_part(part, name, self._own)
            if piece is None:
                self._receipts.dropped(name, "it can only be read by the provider it came from")
                continue
            self._account_for(part, name)
            written.append(piece)
        return written
