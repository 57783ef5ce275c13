"""Citations of an answer."""

from __future__ import annotations

import msgspec
from omnihub.common.v1.chat_pb2 import Citation

from services.formats.documents import Place, text_of

FORMAT = "bedrock_converse"


class _Place(msgspec.Struct, rename="camel"):
    url: str | None = None
    document_index: Place | None = None
    search_result_index: Place | None = None
    start: Place | None = None
    end: Place | None = None


class _Location(msgspec.Struct, rename="camel"):
    web: _Place | None = None
    document_char: _Place | None = None
    document_page: _Place | None = None
    document_chunk: _Place | None = None
    search_result_location: _Place | None = None


class _Content(msgspec.Struct):
    text: str | None = None


class _Wire(msgspec.Struct, rename="camel"):
    title: str | None = None
    source: str | None = None
    source_content: list[_Content] | None = None
    location: _Location | None = None


_decoder = msgspec.json.Decoder(_Wire)


def read_citation(raw: msgspec.Raw) -> Citation:
    """Return a citation; of one of an unknown kind only its raw form."""
    citation = Citation(raw_json=text_of(raw), format=FORMAT)
    try:
        read = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return citation
    citation.title = read.title or ""
    citation.cited_text = "".join(piece.text or "" for piece in read.source_content or ())
    location = read.location or _Location()
    citation.url = (location.web.url if location.web is not None else None) or read.source or ""
    for unit, place in (
        ("char", location.document_char),
        ("page", location.document_page),
        ("block", location.document_chunk),
        ("result", location.search_result_location),
    ):
        if place is not None:
            index = place.search_result_index if unit == "result" else place.document_index
            citation.document_index = max(0, index or 0)
            citation.unit = unit
            citation.source_start, citation.source_end = max(0, place.start or 0), max(0, place.end or 0)
    return citation
