"""Lines, however the bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.providers.frames import FrameTooLargeError
from services.providers.lines import LineParser


def parse(data: bytes, size: int) -> list[tuple[bytes, bytes]]:
    parser = LineParser(2**20)
    events = []
    for start in range(0, len(data), size):
        events += parser.feed(data[start : start + size])
    return events + parser.close()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([b'{"a":1}', b"", b" ", b"\r", "Grüße 🌍".encode(), b"x" * 50]), max_size=9))
def test_any_split_gives_the_same_lines(lines: list[bytes]) -> None:
    data = b"\n".join(lines)
    expected = [(b"", line) for line in lines if line.strip()]
    assert [parse(data, size) for size in (1, 7, 61, 10**6)] == [expected] * 4


@pytest.mark.parametrize("piece", [b"x" * 1000, b"\n" + b"x" * 20_000])
def test_a_line_without_end_is_bounded(piece: bytes) -> None:
    parser = LineParser(10_000)

    def feed() -> None:
        for _ in range(20):
            parser.feed(piece)

    with pytest.raises(FrameTooLargeError):
        feed()
