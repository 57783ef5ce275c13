"""What an answer rests on: grounding and recitation. Their places count bytes, ours characters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
from omnihub.common.v1.chat_pb2 import Citation

from services.formats.documents import Fields, write_object

FORMAT = "gemini"


class _Web(msgspec.Struct):
    uri: str | None = None
    title: str | None = None


class _Chunk(msgspec.Struct, rename="camel"):
    web: _Web | None = None
    retrieved_context: _Web | None = None


class _Segment(msgspec.Struct, rename="camel"):
    part_index: int | None = None
    start_index: int | None = None
    end_index: int | None = None


class _Support(msgspec.Struct, rename="camel"):
    segment: _Segment | None = None
    grounding_chunk_indices: list[int] | None = None


class _Grounding(msgspec.Struct, rename="camel"):
    grounding_chunks: list[_Chunk] | None = None
    grounding_supports: list[_Support] | None = None


class _Source(msgspec.Struct, rename="camel"):
    uri: str | None = None
    title: str | None = None
    start_index: int | None = None
    end_index: int | None = None


class _Recitation(msgspec.Struct, rename="camel"):
    citation_sources: list[_Source] | None = None
    citations: list[_Source] | None = None


class Cited(msgspec.Struct, rename="camel"):
    """A candidate, as far as it names its sources."""

    grounding_metadata: _Grounding | None = None
    citation_metadata: _Recitation | None = None


_decoder = msgspec.json.Decoder(Cited)


def read_cited(candidate: Fields) -> Cited:
    """Return what a candidate names; nothing of what is malformed."""
    try:
        return _decoder.decode(write_object(candidate))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Cited()


def citations_of(cited: Cited, texts: Mapping[int, str]) -> Iterator[tuple[int, Citation]]:
    """Yield each citation with the index of the text it is about. `texts` are the texts by their indexes."""
    if not texts:
        return
    grounding = cited.grounding_metadata or _Grounding()
    chunks = grounding.grounding_chunks or []
    for support in grounding.grounding_supports or ():
        segment = support.segment or _Segment()
        for number in support.grounding_chunk_indices or ():
            if 0 <= number < len(chunks):
                source = chunks[number].web or chunks[number].retrieved_context or _Web()
                named = Citation(url=source.uri or "", title=source.title or "", format=FORMAT)
                yield _placed(named, segment.part_index, segment.start_index, segment.end_index, texts)
    recitation = cited.citation_metadata or _Recitation()
    for told in (*(recitation.citation_sources or ()), *(recitation.citations or ())):
        named = Citation(url=told.uri or "", title=told.title or "", format=FORMAT)
        yield _placed(named, None, told.start_index, told.end_index, texts)


def _placed(
    citation: Citation, part: int | None, start: int | None, end: int | None, texts: Mapping[int, str]
) -> tuple[int, Citation]:
    index = part if part in texts else min(texts)
    assert index is not None
    if end is not None:
        written = texts[index].encode()
        citation.start = _characters(written, max(0, start or 0))
        citation.end = max(citation.start, _characters(written, max(0, end)))
    return index, citation


def _characters(written: bytes, position: int) -> int:
    """Return how many characters the first `position` bytes are."""
    return len(written[:position].decode("utf-8", "ignore"))
