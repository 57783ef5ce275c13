"""Search results that a caller gives a model to read: blocks in some formats, text in the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
from omnihub.common.v1.chat_pb2 import Message, Part

from services.formats.anthropic_messages.blocks import PROVIDER
from services.formats.documents import read_object, text_of
from services.formats.receipts import Receipts

_KIND = "search_result"


class _Text(msgspec.Struct):
    text: str = ""


class _Citing(msgspec.Struct):
    enabled: bool = False


class SearchResult(msgspec.Struct):
    """What was found, and where."""

    type: str = ""
    source: str = ""
    title: str = ""
    content: list[_Text] = []
    citations: _Citing | None = None
    cache_control: msgspec.Raw = msgspec.Raw(b"")
    others: list[str] = msgspec.field(default_factory=list, name="@others")
    """Names of fields that nobody here knows."""

    @property
    def cited(self) -> bool:
        """Tell whether the answer is to cite it."""
        return self.citations is not None and self.citations.enabled

    @property
    def cache_hint(self) -> str:
        """Return the mark that it ends a prefix worth caching."""
        return text_of(self.cache_control)


def read_search_result(part: Part) -> SearchResult | None:
    """Return the search result that a part is; None when it is anything else."""
    if part.WhichOneof("kind") != "opaque" or part.opaque.provider != PROVIDER:
        return None
    if _KIND not in part.opaque.raw_json:
        return None
    try:
        found = msgspec.json.decode(part.opaque.raw_json, type=SearchResult)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if found.type != _KIND:
        return None
    known = SearchResult.__struct_encode_fields__
    found.others = [name for name in read_object(part.opaque.raw_json.encode()) if name not in known]
    return found


def account_for_result(found: SearchResult, path: str, receipts: Receipts) -> None:
    """Receipt what stands beside a search result and has no word elsewhere."""
    for name in found.others:
        receipts.dropped(f"{path}.{name}", "it is not part of this provider's messages")


def as_text(messages: Iterable[Message], receipts: Receipts) -> Iterator[Message]:
    """Yield the messages, with their search results as text, for formats that have no word for them."""
    for index, message in enumerate(messages):
        if not any(map(_holds_one, message.parts)):
            yield message
            continue
        written = Message()
        written.CopyFrom(message)
        _write(written.parts, f"messages[{index}]", receipts)
        yield written


def _holds_one(part: Part) -> bool:
    return read_search_result(part) is not None or any(map(_holds_one, part.tool_result.parts))


def _write(parts: Iterable[Part], path: str, receipts: Receipts) -> None:
    for index, part in enumerate(parts):
        name = f"{path}.content[{index}]"
        if part.WhichOneof("kind") == "tool_result":
            _write(part.tool_result.parts, name, receipts)
            continue
        found = read_search_result(part)
        if found is None:
            continue
        text = "\n".join(piece.text for piece in found.content)
        part.text.text = "\n".join(line for line in (found.title, found.source, text) if line)
        part.cache_hint_json = found.cache_hint
        receipts.translated(name, "a search result, as text")
        account_for_result(found, name, receipts)
        if found.cited:
            receipts.dropped(f"{name}.citations", "this provider cannot cite a search result")
