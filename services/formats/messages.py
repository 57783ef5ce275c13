"""Rules of conversations that hold in every format."""

from __future__ import annotations

from collections.abc import Collection

from omnihub.common.v1.chat_pb2 import ChatInput, Message, Part

from services.formats.documents import says_something
from services.formats.errors import invalid
from services.formats.receipts import Receipts


def check_tool_message(message: Message, path: str) -> None:
    """Raise FormatError when a tool speaks without saying which call it answers."""
    if message.role == "tool" and not any(p.WhichOneof("kind") == "tool_result" for p in message.parts):
        raise invalid(f"{path}.parts", "a message of role tool holds tool_result parts")


def is_foreign(part: Part, path: str, receipts: Receipts, provider: str) -> bool:
    """Tell whether a part is sealed by another provider than this one, and receipt that it stays behind."""
    foreign = part.WhichOneof("kind") == "opaque" and part.opaque.provider != provider
    if foreign:
        receipts.dropped(path, "it can only be read by the provider it came from")
    return foreign


def drop_tool_choice(chat: ChatInput, receipts: Receipts) -> None:
    """Receipt that it is not said how to choose among tools: there are none, and vendors refuse that."""
    parallel = chat.HasField("parallel_tool_calls")
    for name, given in (("tool_choice", bool(chat.tool_choice.mode)), ("parallel_tool_calls", parallel)):
        if given:
            receipts.dropped(name, "there are no tools")


def account_for(
    part: Part, path: str, receipts: Receipts, *, caches: bool = False, written: Collection[str] = ()
) -> None:
    """Receipt what stands beside the content of a part of another format, and is not `written`.

    `caches` says that the mark of a prefix worth caching has a place in the format that is written.
    """
    for name, text in part.extension_json.items():
        if name not in written and says_something(name, text):
            receipts.dropped(f"{path}.{name}", "it is not part of this provider's messages")
    if part.cache_hint_json and not caches:
        receipts.dropped("cache_control", "this provider's format has no such mark")
    if part.text.citations_json:
        receipts.dropped(f"{path}.citations", "citations are not sent back")
