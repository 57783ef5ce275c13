"""Rows 18, 27 to 33 and 41: streams that are late, slow, cut or wrong. Each test shows that it happened."""

from __future__ import annotations

import asyncio

import pytest
from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1.provider_service_api import ProviderService

from tests.support import event_stream
from tests.support.fault_server import Disconnect, Endless, FaultServer, Head, Pause, Send, Stall, sse
from tests.support.providers import text_of
from tests.support.vendors import TEXT, VENDORS, Ask
from tests.support.vendors.outcomes import broken, failure, passed, read
from tests.support.vendors.table import LINES, SSE, asks

pytestmark = pytest.mark.asyncio(loop_scope="module")
STREAMED = pytest.mark.parametrize("in_stream", [False, True])
FRAMED = [name for name, vendor in VENDORS.items() if vendor.content_type not in {SSE, LINES}]
KEEP_ALIVE = {SSE: b": OPENROUTER PROCESSING\n\n", LINES: b"\n"}
PING = b'event: ping\ndata: {"type": "ping"}\n\n'

# Only the limit that is tested is short: a busy machine must not meet another one first.
SILENT = pb.Timeouts(first_token_ms=200)
STALLED = pb.Timeouts(idle_ms=200)
SLOW = pb.Timeouts(total_ms=600)


async def hung_up(server: FaultServer) -> None:
    async with asyncio.timeout(60):
        await server.hung_up.wait()


@asks(18, without=FRAMED)
async def test_keep_alives_are_no_tokens(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    vendor = ask.vendor
    comment = PING if vendor.name == "anthropic" else KEEP_ALIVE[vendor.content_type]
    pieces = [comment, *(vendor.encode(frame) + comment for frame in vendor.text.frames)]
    server.script = vendor.script(*pieces)
    messages = await read(client, ask.attempt())
    assert text_of(messages) == TEXT
    if ask.raw:  # Not every client can read comments, so none gets any.
        assert b"PROCESSING" not in passed(messages, ask)
    # The clock of the first token runs on.
    server.script = [Head(content_type=vendor.content_type), Endless(comment, 0.02)]
    error = await failure(client, ask, True, ask.attempt(timeouts=SILENT))
    assert error.reason == "PROVIDER_TIMEOUT"
    assert "first token" in error.message
    await hung_up(server)
    assert server.injected["endless"] == 1


_CHUNK = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
_SEARCH = {"type": "web_search_call", "id": "ws_1", "status": "in_progress"}
_RESULT = {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}
_IMAGE = {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}


def _delta(**delta: object) -> bytes:
    return sse({**_CHUNK, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})


# What a model does that is no text: how it begins, and what comes of it again and again.
AT_WORK: dict[str, tuple[bytes, bytes]] = {
    "sound": (b"", _delta(audio={"id": "audio_1", "data": "AAAA", "transcript": ""})),
    "functions": (b"", _delta(function_call={"name": "f", "arguments": "{"})),
    "searches": (
        sse({"type": "response.output_item.added", "output_index": 0, "item": _SEARCH}, event=True),
        sse({"type": "response.web_search_call.searching", "item_id": "ws_1"}, event=True),
    ),
    "results": (
        sse({"type": "content_block_start", "index": 0, "content_block": _RESULT}, event=True),
        PING,
    ),
    "images": (b"", sse({"candidates": [{"index": 0, "content": {"role": "model", "parts": [_IMAGE]}}]})),
    "server tools": (
        event_stream.event(
            "contentBlockStart",
            b'{"contentBlockIndex":0,"start":{"toolUse":{"toolUseId":"t","name":"n","type":"server_tool_use"}}}',
        ),
        event_stream.event("unknownEvent", b"{}"),
    ),
}
WORKERS = [
    ("sound", Ask(VENDORS["openai"], raw=True)),
    ("functions", Ask(VENDORS["openai"], raw=True)),
    ("searches", Ask(VENDORS["openai_responses"], raw=True)),
    ("results", Ask(VENDORS["anthropic"], raw=True)),
    ("results", Ask(VENDORS["anthropic"], raw=False)),
    ("images", Ask(VENDORS["gemini"], raw=False)),
    ("server tools", Ask(VENDORS["bedrock"], raw=False)),
]


@pytest.mark.parametrize(("work", "ask"), WORKERS)
async def test_a_model_at_work_is_not_silent(
    server: FaultServer, client: ProviderService, work: str, ask: Ask
) -> None:
    """Not only text is a first token: who speaks, searches or draws for long is not cut off as silent."""
    begin, again = AT_WORK[work]
    server.script = [*ask.vendor.script(begin), Endless(again, 0.02)]
    limits = pb.Timeouts(first_token_ms=500, total_ms=900)
    _, error = await broken(client, ask, ask.attempt(timeouts=limits))
    assert "no complete answer within 0.9 s" in error.message
    assert server.injected["endless"] == 1


@asks(27)
@STREAMED
async def test_silence_before_the_first_byte(
    server: FaultServer, client: ProviderService, ask: Ask, in_stream: bool
) -> None:
    server.script = [Stall()]
    limit = SILENT if in_stream else pb.Timeouts(total_ms=200)
    error = await failure(client, ask, in_stream, ask.attempt(timeouts=limit))
    assert (error.reason, error.metadata["phase"]) == ("PROVIDER_TIMEOUT", "before_first_byte")
    await hung_up(server)
    assert server.injected["stall"] == len(server.requests) == 1


@asks(27)
async def test_silence_after_the_head(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    server.script = [Head(content_type=ask.vendor.content_type), Stall()]
    error = await failure(client, ask, True, ask.attempt(timeouts=SILENT))
    assert (error.reason, error.metadata["phase"]) == ("PROVIDER_TIMEOUT", "before_first_byte")
    await hung_up(server)
    assert server.injected["stall"] == len(server.requests) == 1


@asks(28)
async def test_silence_in_mid_stream(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    server.script = [*ask.vendor.script(ask.vendor.begun()), Stall()]
    messages, error = await broken(client, ask, ask.attempt(timeouts=STALLED))
    assert text_of(messages) == TEXT
    assert (error.reason, error.metadata["phase"]) == ("PROVIDER_TIMEOUT", "mid_stream")
    assert "silent for 0.2 s" in error.message
    await hung_up(server)
    assert server.injected["stall"] == 1


@asks(29, one_way=True)
@STREAMED
async def test_slow_loris(server: FaultServer, client: ProviderService, ask: Ask, in_stream: bool) -> None:
    """Each byte comes in time; the whole answer never does."""
    vendor = ask.vendor
    head = vendor.script(vendor.begun(), vendor.half_frame) if in_stream else [Head(), Send(b"{")]
    server.script = [*head, Endless(b"x", 0.02)]
    asked = ask.attempt(timeouts=SLOW)
    error = (await broken(client, ask, asked))[1] if in_stream else await failure(client, ask, False, asked)
    assert error.reason == "PROVIDER_TIMEOUT"
    assert "no complete answer within 0.6 s" in error.message
    await hung_up(server)
    assert server.injected["endless"] == 1


@asks(29, one_way=True, only=("openai", "anthropic", "bedrock", "ollama"))
async def test_an_answer_without_end(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    """One vendor of each framing: every frame is good, and there is no last one."""
    frames = ask.vendor.text.frames
    last = next(number for number, frame in enumerate(frames) if "Grü" in str(frame))
    again = Endless(ask.vendor.encode(frames[last]), 0.02)
    server.script = [*ask.vendor.script(ask.vendor.encode(*frames[: last + 1])), again]
    messages, error = await broken(client, ask, ask.attempt(timeouts=SLOW))
    assert (error.reason, error.metadata["phase"]) == ("PROVIDER_TIMEOUT", "mid_stream")
    assert "no complete answer within 0.6 s" in error.message
    assert text_of(messages).count("Grü") > 2
    await hung_up(server)
    assert server.injected["endless"] == 1


@asks(29, one_way=True)
@pytest.mark.parametrize("end", ["endless", "disconnect"])
async def test_a_refusal_is_known_by_its_status_however_its_text_comes(
    server: FaultServer, client: ProviderService, ask: Ask, end: str
) -> None:
    """A trickle holds nobody up, and a cut does not make a refusal worth asking again."""
    rest = Endless(b"x", 0.02) if end == "endless" else Disconnect()
    server.script = [Head(400, content_type="text/plain"), Send(b"wrong"), rest]
    limits = pb.Timeouts(idle_ms=200, total_ms=5000)
    error = await failure(client, ask, True, ask.attempt(timeouts=limits))
    assert error.reason == "PROVIDER_REJECTED"
    assert error.metadata["http_status"] == "400"
    assert server.injected["status_400"] == server.injected[end] == len(server.requests) == 1


@asks(30)
@pytest.mark.parametrize("cut", ["clean_end", "half_frame", "first_frames"])
async def test_a_clean_end_without_a_finish(
    server: FaultServer, client: ProviderService, ask: Ask, cut: str
) -> None:
    """It is an error, never a success: also where an end mark follows, and where nothing has been said."""
    vendor = ask.vendor
    data = vendor.encode(vendor.text.frames[0]) if cut == "first_frames" else vendor.begun()
    end = {"half_frame": vendor.half_frame}.get(cut, b"")
    if cut == "clean_end" and b"[DONE]" in vendor.frames():
        end = b"data: [DONE]\n\n"
    server.script = [Head(content_type=vendor.content_type), Send(data + end, fault=cut)]
    messages, error = await broken(client, ask)
    assert error.reason == "STREAM_TRUNCATED"
    if cut != "first_frames":
        assert text_of(messages) == TEXT
        assert error.metadata["phase"] == "mid_stream"
    assert server.injected[cut] == len(server.requests) == 1


@asks(31)
async def test_disconnect_in_mid_stream(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    server.script = [*ask.vendor.script(ask.vendor.begun()), Pause(0.05), Disconnect()]
    messages, error = await broken(client, ask)
    assert text_of(messages) == TEXT
    assert (error.reason, error.metadata["phase"]) == ("STREAM_TRUNCATED", "mid_stream")
    assert server.injected["disconnect"] == len(server.requests) == 1


@asks(31)
@STREAMED
async def test_disconnect_before_an_answer(
    server: FaultServer, client: ProviderService, ask: Ask, in_stream: bool
) -> None:
    server.script = [Disconnect()]
    error = await failure(client, ask, in_stream)
    assert (error.reason, error.metadata["phase"]) == ("PROVIDER_FAILED", "before_first_byte")
    assert server.injected["disconnect"] == len(server.requests) == 1


@asks(31)
async def test_disconnect_in_a_body(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    server.script = [Head(headers={"Content-Length": "1000"}), Send(b'{"id":'), Pause(0.02), Disconnect()]
    error = await failure(client, ask, in_stream=False)
    assert error.reason in {"PROVIDER_FAILED", "PROVIDER_PROTOCOL"}
    assert server.injected["disconnect"] == len(server.requests) == 1


@asks(32)
@pytest.mark.parametrize("together", [True, False])
async def test_a_malformed_frame_is_never_skipped(
    server: FaultServer, client: ProviderService, ask: Ask, together: bool
) -> None:
    vendor = ask.vendor
    before = vendor.begun()
    after = vendor.encode(*vendor.text.frames[vendor.text.begun :])
    head = Head(content_type=vendor.content_type)
    if together:
        server.script = [head, Send(before + vendor.bad_frame + after, fault="malformed")]
    else:
        server.script = [
            head,
            Send(before),
            Pause(0.01),
            Send(vendor.bad_frame, fault="malformed"),
            Send(after),
        ]
    messages, error = await broken(client, ask)
    assert text_of(messages) == TEXT  # What came before it is kept.
    assert (error.reason, error.metadata["phase"]) == ("PROVIDER_PROTOCOL", "mid_stream")
    assert server.injected["malformed"] == len(server.requests) == 1


NO_ANSWERS = [
    b"<html>hello</html>",
    b"",
    b"null",
    b'{"id": 1',
    b"{}",
    b'{"choices": [1]}',
    b"\xff\xfe",
    b"[]",
]


@asks(32)
async def test_a_body_that_is_no_answer(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    for body in NO_ANSWERS:
        server.script = [Head(), Send(body, fault="no_answer")]
        error = await failure(client, ask, in_stream=False)
        assert (error.reason, error.metadata["phase"]) == ("PROVIDER_PROTOCOL", "before_first_byte"), body
    assert server.injected["no_answer"] == len(server.requests) == len(NO_ANSWERS)


@asks(33)
@pytest.mark.parametrize("begun", [True, False])
async def test_an_error_after_status_200(
    server: FaultServer, client: ProviderService, ask: Ask, begun: bool
) -> None:
    vendor = ask.vendor
    assert vendor.refusals.broken
    for reason, frame in vendor.refusals.broken:
        before = vendor.begun() if begun else b""
        server.script = [Head(content_type=vendor.content_type), Send(before + frame, fault="error_frame")]
        messages, error = await broken(client, ask)
        assert error.reason == reason, (frame, error.message)
        assert error.metadata["phase"] == ("mid_stream" if begun else "before_first_byte")
        assert text_of(messages) == (TEXT if begun else "")
    assert server.injected["error_frame"] == len(server.requests) == len(vendor.refusals.broken)


@asks(41, only=tuple(FRAMED))
async def test_frames_of_event_streams(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    """Both checksums are checked; an exception frame is its error; an event that nobody knows is nothing."""
    vendor = ask.vendor
    frame = vendor.encode(vendor.text.frames[1])
    for wrong in (event_stream.with_bad_message_checksum(frame), event_stream.with_bad_prelude(frame)):
        server.script = [*vendor.script(vendor.begun()), Send(wrong, fault="checksum")]
        messages, error = await broken(client, ask)
        assert error.reason == "PROVIDER_PROTOCOL"
        assert text_of(messages) == TEXT
    broke = event_stream.exception("modelTimeoutException", {"message": "too slow"})
    server.script = [*vendor.script(vendor.begun()), Send(broke, fault="exception")]
    _, error = await broken(client, ask)
    assert (error.reason, error.metadata["http_status"]) == ("PROVIDER_TIMEOUT", "408")
    assert server.injected["checksum"] == 2
    assert server.injected["exception"] == 1
    unknown = event_stream.event("inventedTomorrow", {"delta": {"text": "no text"}})
    pieces = [unknown + vendor.encode(frame) for frame in vendor.text.frames]
    server.script = vendor.script(*pieces)
    assert text_of(await read(client, ask.attempt())) == TEXT
