"""Where one stream goes on from another: wherever a text is cut, nothing is lost and nothing doubled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omnihub.common.v1.chat_pb2 import Part, ReasoningPart, TextPart, ToolCall
from omnihub.common.v1.stream_pb2 import PartDelta, PartStart, PartStop, RawFrame
from omnihub.provider.v1.provider_service_pb2 import StreamChatResponse

from services.router.domain.seam import DivergedError, Event, Overlap, Position, Seam
from services.router.domain.transcript import Transcript, has_token

TEXTS = st.text(st.sampled_from("ab \n🌍é"), max_size=12)


def text_part(index: int, pieces: list[str], initial: str = "") -> list[Event]:
    return [
        PartStart(index=index, part=Part(text=TextPart(text=initial))),
        *(PartDelta(index=index, text=piece) for piece in pieces),
        PartStop(index=index),
    ]


def thought(index: int) -> list[Event]:
    part = Part(reasoning=ReasoningPart())
    return [PartStart(index=index, part=part), PartDelta(index=index, reasoning="hm"), PartStop(index=index)]


def tool(index: int) -> list[Event]:
    part = Part(tool_call=ToolCall(id="c", name="f"))
    return [
        PartStart(index=index, part=part),
        PartDelta(index=index, arguments_json="{}"),
        PartStop(index=index),
    ]


def through(seam: Seam, events: list[Event]) -> list[Event]:
    return [*(out for event in events for out in seam.rewrite(event)), *seam.finish()]


def text_of(events: list[Event]) -> str:
    return "".join(
        event.text if isinstance(event, PartDelta) else event.part.text.text
        for event in events
        if not isinstance(event, PartStop)
    )


def check_order(events: list[Event], position: Position) -> None:
    """Every part begins once, in order, and ends once; deltas stand inside."""
    open_, begun = ({position.open_part} if position.open_part is not None else set()), position.parts
    for event in events:
        if isinstance(event, PartStart):
            assert event.index == begun
            assert not open_
            begun += 1
            open_.add(event.index)
        elif isinstance(event, PartStop):
            open_.remove(event.index)
        else:
            assert event.index in open_
    assert not open_


POSITIONS = st.sampled_from(
    [Position(), Position(1), Position(1, 0, True), Position(2, 1, True), Position(2, 1, False)]
)


@given(POSITIONS, TEXTS, TEXTS, st.lists(TEXTS), st.booleans(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_an_answer_that_comes_again(
    position: Position, said: str, rest: str, cuts: list[str], thinks: bool, calls: bool
) -> None:
    whole = said + rest
    pieces = list(chopped(whole, [len(cut) for cut in cuts]))
    second = [*(thought(0) if thinks else []), *text_part(1, pieces), *(tool(2) if calls else [])]
    out = through(Seam(position, Overlap(said, exact=True)), second)
    assert text_of(out) == rest
    check_order(out, position)
    assert any(isinstance(event, PartDelta) and event.arguments_json for event in out) == calls


def chopped(text: str, sizes: list[int]) -> Iterator[str]:
    for size in sizes:
        yield text[:size]
        text = text[size:]
    yield text


@given(TEXTS, TEXTS, st.booleans())
@settings(max_examples=300, deadline=None)
def test_blank_space_at_the_seam_comes_once(said: str, rest: str, repeats: bool) -> None:
    blank = said[len(said.rstrip()) :]
    rest = rest.lstrip()
    pieces = list((blank if repeats else "") + rest)
    out = through(Seam(Position(1, 0, True), Overlap(blank, exact=False)), text_part(0, pieces))
    assert said + text_of(out) == said + rest


@given(TEXTS, TEXTS)
@settings(max_examples=300, deadline=None)
def test_another_answer_is_noticed_before_anything_of_it_is_shown(said: str, other: str) -> None:
    seam = Seam(Position(1, 0, True), Overlap(said, exact=True))
    if other.startswith(said):
        assert text_of(through(seam, text_part(0, list(other)))) == other[len(said) :]
        return
    shown: list[Event] = []

    def show() -> None:
        for event in text_part(0, list(other)):
            shown.extend(seam.rewrite(event))
        shown.extend(seam.finish())

    with pytest.raises(DivergedError):
        show()
    assert shown == []


def test_a_tool_call_in_place_of_the_text_is_another_answer() -> None:
    with pytest.raises(DivergedError):
        through(Seam(Position(1, 0, True), Overlap("text", exact=True)), tool(0))


def test_an_open_thought_ends_before_the_text_goes_on() -> None:
    position = Position(1, 0, False)
    out = through(Seam(position, Overlap("", exact=False)), text_part(0, ["hi"]))
    assert out[0] == PartStop(index=0)
    check_order(out, position)


def wrapped(event: Event) -> StreamChatResponse:
    if isinstance(event, PartStart):
        return StreamChatResponse(part_start=event)
    if isinstance(event, PartStop):
        return StreamChatResponse(part_stop=event)
    return StreamChatResponse(part_delta=event)


def transcript_of(events: list[Event]) -> Transcript:
    transcript = Transcript()
    for event in events:
        transcript.add(wrapped(event))
    return transcript


@given(st.lists(TEXTS, max_size=5), st.integers(0, 8))
@settings(max_examples=200, deadline=None)
def test_a_transcript_knows_text_and_place(pieces: list[str], cut: int) -> None:
    events = [*thought(0), *text_part(1, pieces, initial="x")][: 3 + cut]
    transcript = transcript_of(events)
    assert transcript.text == text_of(events)
    assert not transcript.beyond_text
    expected = Position(2, 1, True) if cut and cut < len(pieces) + 2 else Position(2 if cut else 1)
    assert transcript.position == expected


def test_a_transcript_of_more_than_text() -> None:
    assert transcript_of(tool(0)[:1]).beyond_text
    assert transcript_of([PartDelta(refusal="no")]).beyond_text


def test_a_transcript_of_frames() -> None:
    transcript = Transcript()
    transcript.add(StreamChatResponse(raw_frame=RawFrame(data=b"x", text="hé")))
    assert (transcript.text, transcript.position) == ("hé", Position(1, 0, True))
    assert transcript.produced_bytes == 3
    transcript.add(StreamChatResponse(raw_frame=RawFrame(data=b"x", parts=2, open_part="reasoning")))
    assert transcript.position == Position(2, 1, False)
    transcript.next_attempt()
    assert transcript.attempt_bytes == 0
    transcript.add(StreamChatResponse(part_stop=PartStop(index=1)))
    assert transcript.position == Position(2)
    transcript.add(StreamChatResponse(raw_frame=RawFrame(data=b"x", beyond_text=True)))
    assert transcript.beyond_text


@pytest.mark.parametrize(
    ("event", "token"),
    [
        (PartStart(part=Part(text=TextPart())), False),
        (PartStart(part=Part(text=TextPart(text="x"))), True),
        (PartStart(part=Part(reasoning=ReasoningPart())), False),
        (PartStart(part=Part(tool_call=ToolCall(name="f"))), True),
        (PartDelta(index=1, text=""), False),
        (PartDelta(text="x"), True),
        (PartDelta(arguments_json="{"), True),
        (PartStop(index=1), False),
    ],
)
def test_the_first_token(event: Event, token: bool) -> None:
    assert has_token(wrapped(event)) == token


@pytest.mark.parametrize(
    ("frame", "token"),
    [({}, False), ({"text": "x"}, True), ({"thought": True}, True), ({"beyond_text": True}, True)],
)
def test_the_first_token_of_frames(frame: dict[str, object], token: bool) -> None:
    assert has_token(StreamChatResponse(raw_frame=RawFrame(data=b"x", **frame))) == token  # type: ignore[arg-type]
