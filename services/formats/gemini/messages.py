"""The turns of a conversation, both ways."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import Message, Part

from services.formats.documents import (
    Fields,
    is_null,
    is_object,
    join,
    keep,
    merge,
    raw_of,
    read_value,
    says_something,
    take,
)
from services.formats.errors import invalid
from services.formats.gemini.calls import is_made
from services.formats.gemini.parts import (
    SIGNATURE,
    CallIds,
    read_part,
    write_own_result,
    write_part,
)
from services.formats.messages import account_for, check_tool_message
from services.formats.receipts import Receipts

# Marks the role as it was written; empty when there was none.
_ROLE = "@role"
_SYSTEM = frozenset({"system", "developer"})
_ROLES = {"user": "user", "model": "assistant", "function": "user", None: "user"}
# From this generation on a call must come back with its signature. The vendor documents this
# value for calls that another model made.
_SIGNED_SINCE = 3
_NO_SIGNATURE = "skip_thought_signature_validator"
_GENERATION = re.compile(r"gemini-(\d+)")


def generation_of(model: str) -> int:
    """Return the generation in a model's name, 0 when it names none."""
    found = _GENERATION.search(model)
    return int(found[1]) if found else 0


def read_system(raw: msgspec.Raw, ids: CallIds) -> Message:
    """Read the top-level `systemInstruction`."""
    fields = read_value(raw, Fields, "systemInstruction")
    message = Message(role="system")
    _fill(message, fields, "systemInstruction", ids)
    return message


def read_content(raw: msgspec.Raw, path: str, ids: CallIds) -> Message:
    """Read one content. Raises FormatError naming the field that is wrong."""
    fields = read_value(raw, Fields, path)
    role = take(fields, "role", str, path)
    if role not in _ROLES:
        raise invalid(
            join(path, "role"), "expected user or model; instructions belong into `systemInstruction`"
        )
    message = Message(role=_ROLES[role])
    if role not in {"user", "model"}:
        message.extension_json[_ROLE] = role or ""
    _fill(message, fields, path, ids)
    return message


def _fill(message: Message, fields: Fields, path: str, ids: CallIds) -> None:
    raws = (
        [] if is_null(fields.get("parts", b"null")) else read_value(fields["parts"], list[msgspec.Raw], path)
    )
    for index, raw in enumerate(raws):
        message.parts.append(read_part(raw, f"{path}.parts[{index}]", ids))
    if raws:
        del fields["parts"]
    keep(fields, message.extension_json)


def write_own(messages: Iterable[Message]) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Return `systemInstruction` and contents of messages that came in this format."""
    system: dict[str, Any] | None = None
    contents: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        fields: dict[str, Any] = {}
        if message.role != "system":
            role = message.extension_json.get(_ROLE, "model" if message.role == "assistant" else "user")
            fields = {"role": role} if role else {}
        parts = [_write_own(part, f"contents[{index}].parts[{i}]") for i, part in enumerate(message.parts)]
        if parts:
            fields["parts"] = parts
        merge(fields, message.extension_json)
        if message.role == "system":
            system = fields
        else:
            contents.append(fields)
    return system, contents


def _write_own(part: Part, path: str) -> Any:
    is_result = part.WhichOneof("kind") == "tool_result"
    return write_own_result(part, path) if is_result else write_part(part, path, own=True)


class ContentWriter:
    """Writes messages of other formats as contents; what has no place here is receipted."""

    def __init__(self, receipts: Receipts, model: str) -> None:
        self._receipts = receipts
        self._signed = generation_of(model) >= _SIGNED_SINCE
        self._system: list[Any] = []
        self._contents: list[dict[str, Any]] = []
        self._calls: dict[str, tuple[int, str]] = {}
        """Position and tool of each call so far."""
        self._unnamed: set[str] = set()
        """Calls to which the provider gave no id."""
        self._results: list[tuple[int, dict[str, Any]]] = []
        """Results of parallel calls: they go back together, in the order of the calls."""
        self._media: list[Any] = []
        """What came with them."""

    def write(self, messages: Iterable[Message]) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        """Return `systemInstruction` and contents."""
        for index, message in enumerate(messages):
            path = f"messages[{index}]"
            check_tool_message(message, path)
            self._drop_extension(message.extension_json, path)
            if message.name and message.role != "tool":
                self._receipts.dropped(f"{path}.name", "this provider's contents have no name")
            if message.role in _SYSTEM:
                self._add_system(message, path)
            elif message.role == "assistant":
                self._flush()
                self._add("model", self._assistant(message, path))
            else:
                rest = self._turn(message, path)
                if message.role == "tool":
                    self._media.extend(rest)
                else:
                    self._flush()
                    self._add("user", rest)
        self._flush()
        return ({"parts": self._system} if self._system else None), self._contents

    def _add(self, role: str, parts: list[Any]) -> None:
        if parts:
            self._contents.append({"role": role, "parts": parts})

    def _flush(self) -> None:
        """Write the results that have come, then the media that came with them."""
        self._results.sort(key=lambda result: result[0])
        self._add("user", [part for _, part in self._results])
        self._add("user", self._media)
        self._results, self._media = [], []

    def _add_system(self, message: Message, path: str) -> None:
        if self._contents or self._results:
            self._receipts.translated(f"{path}.role", "instructions in mid-conversation moved to the start")
        elif message.role == "developer":
            self._receipts.translated(f"{path}.role", "developer instructions are given as systemInstruction")
        self._system.extend(self._parts(message, path))

    def _turn(self, message: Message, path: str) -> list[Any]:
        """Take the results of tools; return everything else."""
        if not message.parts:
            return [{"text": message.content}] if message.content else []
        rest: list[Part] = []
        for index, part in enumerate(message.parts):
            if part.WhichOneof("kind") == "tool_result":
                rest.extend(self._take_result(part, message, f"{path}.parts[{index}]"))
            else:
                rest.append(part)
        return self._written(rest, path)

    def _parts(self, message: Message, path: str) -> list[Any]:
        if not message.parts:
            return [{"text": message.content}] if message.content else []
        return self._written(message.parts, path)

    def _written(self, parts: Sequence[Part], path: str) -> list[Any]:
        written = []
        for index, part in enumerate(parts):
            name = f"{path}.content[{index}]"
            piece = write_part(part, name, own=False)
            if piece is None:
                if part.WhichOneof("kind") != "text":
                    self._receipts.dropped(name, "it can only be read by the provider it came from")
                continue
            if part.WhichOneof("kind") == "image" and part.image.detail not in {"", "auto"}:
                self._receipts.dropped(f"{name}.detail", "this provider has no such level of detail")
            account_for(part, name, self._receipts, written=(SIGNATURE,))
            written.append(piece)
        return written

    def _assistant(self, message: Message, path: str) -> list[Any]:
        first_call = True
        for index, part in enumerate(message.parts):
            if part.WhichOneof("kind") != "tool_call":
                continue
            call = part.tool_call
            self._calls[call.id] = (len(self._calls), call.name)
            if call.id_synthesised:
                self._unnamed.add(call.id)
            if call.arguments_json and not is_object(call.arguments_json):
                name = f"{path}.content[{index}].args"
                self._receipts.translated(name, "the model's arguments are no JSON object; sent as a string")
        parts = self._parts(message, path)
        for written in parts:
            if isinstance(written, dict) and "functionCall" in written:
                if first_call and self._signed:
                    written.setdefault(SIGNATURE, _NO_SIGNATURE)
                first_call = False
        return parts

    def _take_result(self, part: Part, message: Message, path: str) -> list[Part]:
        """Keep the result, and return its media, which follow as parts of their own."""
        result = part.tool_result
        account_for(part, path, self._receipts)
        position, name = self._calls.get(result.call_id, (len(self._calls), ""))
        name = name or result.name or message.name
        if not name:
            hint = "no earlier message has this tool call, and this provider must know the tool's name"
            raise invalid(f"{path}.call_id", hint)
        inner: dict[str, Any] = {"name": name}
        texts = []
        for index, piece in enumerate(result.parts):
            if piece.WhichOneof("kind") == "text":
                texts.append(piece.text.text)
                account_for(piece, f"{path}.content[{index}]", self._receipts)
        media = [piece for piece in result.parts if piece.WhichOneof("kind") != "text"]
        if media:
            self._receipts.translated(f"{path}.content", "media of a tool result follow it")
        inner["response"] = _response(texts, result.is_error)
        if result.call_id and not is_made(result.call_id) and result.call_id not in self._unnamed:
            inner = {"id": result.call_id, **inner}
        self._results.append((position, {"functionResponse": inner}))
        return media

    def _drop_extension(self, extension: Mapping[str, str], path: str) -> None:
        for name, text in extension.items():
            if says_something(name, text):
                self._receipts.dropped(f"{path}.{name}", "it is not part of this provider's contents")


def _response(texts: Sequence[str], is_error: bool) -> Any:
    """Return a result as the object that this format wants."""
    value: Any = raw_of(texts[0]) if len(texts) == 1 and is_object(texts[0]) else "\n".join(texts)
    if is_error:
        return {"error": value}
    return value if isinstance(value, msgspec.Raw) else {"output": value}
