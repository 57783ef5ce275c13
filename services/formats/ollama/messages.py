"""The turns of a conversation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from omnihub.common.v1.chat_pb2 import MediaPart, Message, Part, ToolCall

from services.formats.documents import is_object, raw_of, says_something
from services.formats.errors import unsupported
from services.formats.media import encode_base64
from services.formats.messages import account_for, check_tool_message
from services.formats.receipts import Receipts

_ROLES = {"developer": "system", "tool": "user"}


class MessageWriter:
    """Writes messages of other formats; what has no place here is receipted."""

    def __init__(self, receipts: Receipts) -> None:
        self._receipts = receipts
        self._names: dict[str, str] = {}
        """The tool of each call so far: results name the tool."""

    def write(self, messages: Iterable[Message]) -> list[dict[str, Any]]:
        """Return the messages; tool results become messages of their own."""
        written: list[dict[str, Any]] = []
        for index, message in enumerate(messages):
            path = f"messages[{index}]"
            check_tool_message(message, path)
            self._drop_extension(message.extension_json, path)
            if message.name and message.role != "tool":
                self._receipts.dropped(f"{path}.name", "this provider's messages have no name")
            if message.role == "developer":
                self._receipts.translated(f"{path}.role", "developer instructions are given as system")
            results, rest = self._results(message, path)
            written.extend(results)
            if rest or not results:
                fields: dict[str, Any] = {"role": _ROLES.get(message.role, message.role)}
                self._fill(fields, rest, message.content, path)
                written.append(fields)
        return written

    def _drop_extension(self, extension: Mapping[str, str], path: str) -> None:
        for name, text in extension.items():
            if says_something(name, text):
                self._receipts.dropped(f"{path}.{name}", "it is not part of this provider's messages")

    def _results(self, message: Message, path: str) -> tuple[list[dict[str, Any]], list[Part]]:
        """Return the messages of tool results, and the other parts."""
        written: list[dict[str, Any]] = []
        rest: list[Part] = []
        for index, part in enumerate(message.parts):
            if part.WhichOneof("kind") != "tool_result":
                rest.append(part)
                continue
            result = part.tool_result
            account_for(part, f"{path}.parts[{index}]", self._receipts)
            fields: dict[str, Any] = {"role": "tool"}
            name = self._names.get(result.call_id) or result.name or message.name
            if name:
                fields["tool_name"] = name
            if result.is_error:
                hint = "this format has no mark for failed tools; the text stays"
                self._receipts.translated(f"{path}.is_error", hint)
            self._fill(fields, result.parts, "", f"{path}.parts[{index}]")
            written.append(fields)
        return written, rest

    def _fill(self, fields: dict[str, Any], parts: Sequence[Part], content: str, path: str) -> None:
        texts, images, calls = [content] if content else [], [], []
        for index, part in enumerate(parts):
            name = f"{path}.content[{index}]"
            match part.WhichOneof("kind"):
                case "text":
                    texts.append(part.text.text)
                case "refusal":
                    texts.append(part.refusal.text)
                case "image":
                    images.append(self._image(part.image, name))
                case "document":
                    texts.append(_text_of(part.document, name))
                case "tool_call":
                    calls.append(self._call(part.tool_call, name))
                case "audio" | "video" as kind:
                    raise unsupported(name, f"this provider takes no {kind}")
                case _:
                    self._receipts.dropped(name, "it can only be read by the provider it came from")
                    continue
            account_for(part, name, self._receipts)
        fields["content"] = "\n".join(texts)
        if images:
            fields["images"] = images
        if calls:
            fields["tool_calls"] = calls

    def _image(self, image: MediaPart, path: str) -> str:
        if image.WhichOneof("source") != "data":
            raise unsupported(path, "this provider takes images only as bytes: send a data URL")
        if image.detail not in {"", "auto"}:
            self._receipts.dropped(f"{path}.detail", "this provider has no level of detail")
        return encode_base64(image.data)

    def _call(self, call: ToolCall, path: str) -> dict[str, Any]:
        self._names[call.id] = call.name
        arguments: Any = {}
        if is_object(call.arguments_json):
            arguments = raw_of(call.arguments_json)
        elif call.arguments_json:
            arguments = {"arguments": call.arguments_json}
            hint = "the model's arguments are no JSON object; sent as a string"
            self._receipts.translated(f"{path}.arguments", hint)
        if call.signature:
            self._receipts.dropped(f"{path}.signature", "it goes back only to the provider it came from")
        return {"function": {"name": call.name, "arguments": arguments}}


def _text_of(document: MediaPart, path: str) -> str:
    if document.WhichOneof("source") == "data" and document.mime.startswith("text/"):
        try:
            return document.data.decode()
        except UnicodeDecodeError:
            raise unsupported(path, "a text document must be UTF-8") from None
    raise unsupported(path, "this provider takes documents only as text")
