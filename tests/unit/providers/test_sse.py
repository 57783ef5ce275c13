"""Server-sent events by the specification, however the bytes are cut."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.providers.sse import FrameTooLargeError, SseParser

CASES = {
    "plain": (b"data: a\n\ndata: b\n\n", [(b"", b"a"), (b"", b"b")]),
    "crlf": (b"event: x\r\ndata: a\r\n\r\n", [(b"x", b"a")]),
    "cr": (b"data: a\rdata: b\r\r", [(b"", b"a\nb")]),
    "multi line": (b"data: a\ndata:b\ndata\n\n", [(b"", b"a\nb\n")]),
    "comments": (b": keep-alive\n\n: again\ndata: a\n\n", [(b"", b"a")]),
    "byte order mark": (b"\xef\xbb\xbfdata: a\n\n", [(b"", b"a")]),
    "other fields": (b"id: 1\nretry: 5\nnonsense\ndata: a\n\n", [(b"", b"a")]),
    "only one space is stripped": (b"data:  a\n\n", [(b"", b" a")]),
    "a name without data is no event": (b"event: x\n\ndata: a\n\n", [(b"", b"a")]),
    "no final blank line": (b"data: a\n\ndata: b", [(b"", b"a"), (b"", b"b")]),
    "utf-8": ("data: Grüße 🌍\n\n".encode(), [(b"", "Grüße 🌍".encode())]),
}


def parse(data: bytes, size: int) -> list[tuple[bytes, bytes]]:
    parser = SseParser(2**20)
    events = []
    for start in range(0, len(data), size):
        events += parser.feed(data[start : start + size])
    return events + parser.close()


@pytest.mark.parametrize("size", [1, 2, 7, 61, 10**6])
@pytest.mark.parametrize("case", CASES)
def test_any_split_gives_the_same_events(case: str, size: int) -> None:
    data, expected = CASES[case]
    assert parse(data, size) == expected


@settings(max_examples=100, deadline=None)
@given(
    lines=st.lists(
        st.sampled_from([b"data: x", b"data:", b": c", b"event: e", b"", b"data: {}"]), max_size=12
    ),
    ends=st.lists(st.sampled_from([b"\n", b"\r\n", b"\r"]), min_size=12, max_size=12),
    cuts=st.lists(st.integers(0, 120), max_size=8),
)
def test_cuts_never_matter(lines: list[bytes], ends: list[bytes], cuts: list[int]) -> None:
    data = b"data: first\n\n" + b"".join(line + end for line, end in zip(lines, ends, strict=False))
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    parser = SseParser(2**20)
    events = []
    for start, stop in pairwise(places):
        events += parser.feed(data[start:stop])
    assert events + parser.close() == parse(data, 10**6)


@pytest.mark.parametrize("piece", [b"x" * 1000, b"data: y\n", b"data:\n"])
def test_a_frame_without_end_is_bounded(piece: bytes) -> None:
    parser = SseParser(10_000)

    def feed() -> None:
        for _ in range(20_000):
            parser.feed(piece)

    with pytest.raises(FrameTooLargeError):
        feed()


@settings(max_examples=200, deadline=None)
@given(
    blocks=st.lists(
        st.sampled_from(
            [
                b"data: x\n\n",
                b"data: x\n\ndata: y\n\n",
                b"event: e\ndata: y\n\n",
                b"event: e\n\n",
                b": c\n\n",
                b"data: 1\ndata: 2\n\n",
                b"data: \r\n\r\n",
                b"data:z\n\n",
                b"event: e\n",
                b"data: cut",
                b"\n\n",
            ]
        ),
        max_size=8,
    )
)
def test_what_is_seen_to_be_whole_is_what_would_be_read(blocks: list[bytes]) -> None:
    parser, slow = SseParser(2**20), SseParser(2**20)
    for block in (b"data: first\n\n", *blocks):
        before = deepcopy(parser.__getstate__())
        whole = parser.whole(block)
        assert parser.__getstate__() == before
        # Byte by byte nothing is whole.
        read = [event for at in range(len(block)) for event in slow.feed(block[at : at + 1])]
        assert whole in (None, read)
        assert parser.feed(block) == read
