"""Annotations of an answer, both ways. In this format they stand beside the whole text."""

from __future__ import annotations

from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import Citation

from services.formats.documents import Place, text_of

FORMAT = "openai_chat"


class _UrlCitation(msgspec.Struct):
    url: str | None = None
    title: str | None = None
    start_index: Place | None = None
    end_index: Place | None = None


class _Annotation(msgspec.Struct):
    type: str = ""
    url_citation: _UrlCitation | None = None


_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_annotation_decoder = msgspec.json.Decoder(_Annotation)


def read_annotations(raw: msgspec.Raw | None) -> list[Citation]:
    """Return the citations among annotations; nothing of what is not a list of them."""
    try:
        listed = _decoder.decode(raw) if raw else []
        read = [(each, _annotation_decoder.decode(each)) for each in listed]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return []
    citations = []
    for each, annotation in read:
        cited = annotation.url_citation or _UrlCitation()
        citation = Citation(url=cited.url or "", title=cited.title or "")
        citation.raw_json, citation.format = text_of(each), FORMAT
        if cited.start_index is not None and cited.end_index is not None and cited.start_index >= 0:
            citation.start, citation.end = cited.start_index, max(cited.start_index, cited.end_index)
        citations.append(citation)
    return citations


def write_annotation(citation: Citation, offset: int, length: int) -> dict[str, Any] | None:
    """Return the annotation for a text of `length` characters that begins at `offset` of the whole.

    None for what has no address: this format has no word for it.
    """
    if not citation.url:
        return None
    start = citation.start if citation.HasField("start") else 0
    end = citation.end if citation.HasField("end") else length
    cited = {
        "url": citation.url,
        "title": citation.title,
        "start_index": offset + start,
        "end_index": offset + end,
    }
    return {"type": "url_citation", "url_citation": cited}
