"""Event-stream frames, however the bytes are cut and whatever is wrong with them."""

from __future__ import annotations

import struct
from binascii import crc32

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given, settings
from hypothesis import strategies as st

from services.providers.adapters.bedrock.event_stream import EventStreamParser
from services.providers.frames import FrameError, FrameTooLargeError
from tests.support import event_stream
from tests.support.bedrock import cell
from tests.support.event_stream import encode, event, exception

LIMIT = 10_000
GOOD = [
    (event("a", b"{}"), (b"a", b"{}")),
    (event("b", "Grüße 🌍".encode()), (b"b", "Grüße 🌍".encode())),
    (event("c", b""), (b"c", b"")),
    (
        exception("throttlingException", {"message": "m"}),
        (b"exception/throttlingException", b'{"message": "m"}'),
    ),
    (event_stream.error("Odd", "said"), (b"error/Odd", b'{"message":"said"}')),
    (encode({}, b"x"), (b"", b"x")),
]
WHOLE = b"".join(frame for frame, _ in GOOD)
EVENTS = [read for _, read in GOOD]


def test_botocore_reads_the_frames_of_the_fake() -> None:
    buffer = EventStreamBuffer()
    buffer.add_data(WHOLE)
    assert [message.payload for message in buffer][:3] == [b"{}", "Grüße 🌍".encode(), b""]


@cell(3)
@given(st.lists(st.integers(0, len(WHOLE)), max_size=8).map(sorted))
@settings(max_examples=200, deadline=None)
def test_the_cut_does_not_matter(cuts: list[int]) -> None:
    parser = EventStreamParser(LIMIT)
    events = []
    for start, end in zip([0, *cuts], [*cuts, len(WHOLE)], strict=True):
        events += parser.feed(WHOLE[start:end])
    assert events + parser.close() == EVENTS


@cell(41)
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (event_stream.with_bad_message_checksum(event("x", b"{}")), "Checksum mismatch"),
        (event_stream.with_bad_prelude(event("x", b"{}")), "prelude"),
        (b"data: {}\n\ndata: {}\n\n", "prelude"),
        (encode({":event-type": "x", "a": "b"}, b"").replace(b"\x01a\x07", b"\x01a\x63"), "Checksum"),
    ],
)
def test_what_is_wrong_is_told_after_what_was_right(broken: bytes, message: str) -> None:
    parser = EventStreamParser(LIMIT)
    with pytest.raises(FrameError, match=message) as caught:
        parser.feed(GOOD[0][0] + broken)
    assert caught.value.before == EVENTS[:1]


def sealed(headers: bytes, payload: bytes = b"", headers_length: int | None = None) -> bytes:
    """Return a frame whose checksums are right, whatever is in it."""
    length = len(headers) if headers_length is None else headers_length
    prelude = struct.pack("!II", 16 + len(headers) + len(payload), length)
    frame = prelude + struct.pack("!I", crc32(prelude)) + headers + payload
    return frame + struct.pack("!I", crc32(frame))


@cell(41)
@pytest.mark.parametrize(
    "frame",
    [
        sealed(b"\x01a\x63"),  # a header of no known type
        sealed(b"\x01a\x07\x00\x02\xff\xfe"),  # a text that is no UTF-8
        sealed(b"\x01a\x04\x00"),  # a number that is cut short
        sealed(b"\x01a\x00\x01a\x00"),  # a header twice
        sealed(b"", headers_length=5),  # headers longer than the frame
        struct.pack("!III", 8, 0, crc32(struct.pack("!II", 8, 0))) + b"    ",  # shorter than its own frame
    ],
)
def test_odd_frames_with_good_checksums(frame: bytes) -> None:
    with pytest.raises(FrameError):
        EventStreamParser(LIMIT).feed(frame)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_noise_is_an_error_or_waited_for(noise: bytes) -> None:
    parser = EventStreamParser(LIMIT)
    if len(noise) < 12:
        assert parser.feed(noise) == []
        return
    with pytest.raises(FrameError):
        parser.feed(noise)


@cell(38)
def test_a_large_frame_is_refused_by_its_length() -> None:
    frame = event("x", b"x" * LIMIT)
    with pytest.raises(FrameTooLargeError):
        EventStreamParser(LIMIT).feed(frame[:12])
    assert EventStreamParser(LIMIT + 200).feed(frame)
