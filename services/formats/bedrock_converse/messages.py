"""The turns of a conversation: two roles that take turns, instructions beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from omnihub.common.v1.chat_pb2 import Message, Part

from services.formats.bedrock_converse.blocks import (
    PROVIDER,
    BlockWriter,
    cache_point,
    document_fields,
    is_object,
    tool_id,
)
from services.formats.documents import says_something
from services.formats.messages import account_for, check_tool_message, is_foreign
from services.formats.receipts import Receipts
from services.formats.search_results import account_for_result, read_search_result

_SYSTEM = frozenset({"system", "developer"})


class MessageWriter:
    """Writes messages as this format has them; what it has no place for is receipted."""

    def __init__(self, receipts: Receipts) -> None:
        self._receipts = receipts
        self._blocks = BlockWriter()
        self.called: dict[str, None] = {}
        """The names of the tools in the conversation, in order."""

    def write(self, messages: Iterable[Message]) -> tuple[list[Any], list[dict[str, Any]]]:
        """Return the instructions and the turns. Messages of one role that follow each other are one turn."""
        system: list[Any] = []
        turns: list[dict[str, Any]] = []
        for index, message in enumerate(messages):
            path = f"messages[{index}]"
            self._drop(message, path)
            content = self._content(message, path)
            if message.role in _SYSTEM:
                self._note_system(message, path, late=bool(turns))
                system.extend(content)
                continue
            check_tool_message(message, path)
            role = "assistant" if message.role == "assistant" else "user"
            if turns and turns[-1]["role"] == role:
                turns[-1]["content"].extend(content)
            elif content:
                turns.append({"role": role, "content": content})
        return system, turns

    def _note_system(self, message: Message, path: str, late: bool) -> None:
        if late:
            self._receipts.translated(f"{path}.role", "instructions in mid-conversation moved to `system`")
        elif message.role == "developer":
            self._receipts.translated(f"{path}.role", "developer instructions are given as `system`")

    def _content(self, message: Message, path: str) -> list[Any]:
        if not message.parts:
            # The provider refuses blank text.
            return [{"text": message.content}] if message.content.strip() else []
        blocks: list[Any] = []
        for index, part in enumerate(message.parts):
            name = f"{path}.content[{index}]"
            block = self._blocks.write(part, name)
            if block is None:
                if part.WhichOneof("kind") not in {"text", "refusal"}:
                    self._receipts.dropped(name, "it can only be read by the provider it came from")
                elif part.text.text or part.refusal.text:
                    self._receipts.translated(name, "blank text, which this provider refuses, is left out")
                continue
            self._note(part, name)
            blocks.append(block)
            if hint := _cache_hint(part):
                blocks.append(cache_point(hint))
        return blocks

    def _note(self, part: Part, name: str) -> None:
        """Receipt what of a part does not travel."""
        account_for(part, name, self._receipts, caches=True, written=document_fields(part))
        if (found := read_search_result(part)) is not None:
            account_for_result(found, name, self._receipts)
        for index, piece in enumerate(part.tool_result.parts):
            inner = f"{name}.content[{index}]"
            if read_search_result(piece) or not is_foreign(piece, inner, self._receipts, PROVIDER):
                self._note(piece, inner)
            if _cache_hint(piece):
                self._receipts.dropped("cache_control", "this provider has none inside the result of a tool")
        match part.WhichOneof("kind"):
            case "tool_call":
                call = part.tool_call
                self.called[call.name] = None
                if call.arguments_json and not is_object(call.arguments_json):
                    self._receipts.translated(
                        f"{name}.input", "the model's arguments are no JSON object; sent as a string"
                    )
                if tool_id(call.id) != call.id:
                    self._receipts.translated(f"{name}.id", "this provider does not take such ids")
                if call.signature:
                    reason = "it goes back only to the provider it came from"
                    self._receipts.dropped(f"{name}.signature", reason)
            case "image" if part.image.detail not in {"", "auto"}:
                self._receipts.dropped(f"{name}.detail", "this provider has no level of detail")

    def _drop(self, message: Message, path: str) -> None:
        self._drop_extension(message.extension_json, path)
        if message.name and message.role != "tool":
            self._receipts.dropped(f"{path}.name", "this provider's messages have no name")

    def _drop_extension(self, extension: Mapping[str, str], path: str) -> None:
        for name, text in extension.items():
            if says_something(name, text):
                self._receipts.dropped(f"{path}.{name}", "it is not part of this provider's messages")


def _cache_hint(part: Part) -> str:
    """Return the mark that a prefix worth caching ends here."""
    found = read_search_result(part)
    return part.cache_hint_json if found is None else found.cache_hint
