"""Citations of a text block, both ways."""

from __future__ import annotations

from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import Citation

from services.formats.documents import Place, raw_of, text_of

FORMAT = "anthropic_messages"
# The kinds that cite a document of the request, and what their places count.
_UNITS = {"char_location": "char", "page_location": "page", "content_block_location": "block"}
_KINDS = {
    "char": ("char_location", "start_char_index", "end_char_index"),
    "page": ("page_location", "start_page_number", "end_page_number"),
    "block": ("content_block_location", "start_block_index", "end_block_index"),
}


class _Wire(msgspec.Struct):
    type: str = ""
    cited_text: str | None = None
    title: str | None = None
    document_title: str | None = None
    url: str | None = None
    source: str | None = None
    file_id: str | None = None
    document_index: Place | None = None
    search_result_index: Place | None = None
    start_char_index: Place | None = None
    end_char_index: Place | None = None
    start_page_number: Place | None = None
    end_page_number: Place | None = None
    start_block_index: Place | None = None
    end_block_index: Place | None = None


_decoder = msgspec.json.Decoder(_Wire)


def read_citation(raw: msgspec.Raw) -> Citation:
    """Return a citation; of one of an unknown kind only its raw form."""
    citation = Citation(raw_json=text_of(raw), format=FORMAT)
    try:
        read = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return citation
    citation.cited_text = read.cited_text or ""
    citation.title = read.document_title or read.title or ""
    citation.url = read.url or read.source or ""
    citation.file_id = read.file_id or ""
    index = read.search_result_index if read.type == "search_result_location" else read.document_index
    if index is not None and index >= 0:
        citation.document_index = index
    citation.unit = "result" if read.type == "search_result_location" else _UNITS.get(read.type, "")
    if citation.unit:
        names = _KINDS["block" if citation.unit == "result" else citation.unit][1:]
        citation.source_start, citation.source_end = (max(0, getattr(read, name) or 0) for name in names)
    return citation


def write_citation(citation: Citation) -> dict[str, Any] | msgspec.Raw | None:
    """Return a citation of any provider; None for what this format has no word for."""
    if citation.format == FORMAT and citation.raw_json:
        return raw_of(citation.raw_json)
    place = {"cited_text": citation.cited_text}
    if citation.unit == "result":
        return {
            "type": "search_result_location",
            **place,
            "search_result_index": citation.document_index,
            "source": citation.url,
            "title": citation.title or None,
            "start_block_index": citation.source_start,
            "end_block_index": citation.source_end,
        }
    if citation.unit in _KINDS:
        kind, start, end = _KINDS[citation.unit]
        return {
            "type": kind,
            **place,
            "document_index": citation.document_index,
            "document_title": citation.title or None,
            "file_id": citation.file_id or None,
            start: citation.source_start,
            end: citation.source_end,
        }
    if citation.url:
        # What only its own vendor can read again is empty.
        return {
            "type": "web_search_result_location",
            **place,
            "url": citation.url,
            "title": citation.title or None,
            "encrypted_index": "",
        }
    return None
