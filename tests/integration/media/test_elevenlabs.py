"""ElevenLabs beyond plain speech, on a server of our own that its client accepts."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from elevenlabs.client import AsyncElevenLabs
from elevenlabs.core.api_error import ApiError
from omnihub.common.v1.media_pb2 import (
    MediaFile,
    MediaInput,
    SpeechInput,
    TranscriptionInput,
    VoiceCloneInput,
)
from omnihub.provider.v1 import media_provider_service_pb2 as pb
from omnihub.provider.v1.media_provider_service_api import MediaProviderService

from services.common.rpc import Call, RpcError
from tests.support.fault_server import FaultServer, Head, Pause, Send, answer, running_fault_server
from tests.support.media import Maker, running_media

KEY = "xi-test-0123456789"
SECRETS = ["wsec_old", "wsec_new"]
ALIGNMENT = {
    "characters": ["h", "i"],
    "character_start_times_seconds": [0.0, 0.1],
    "character_end_times_seconds": [0.1, 0.2],
}


def timed(sound: bytes, alignment: dict | None = None) -> dict:
    return {"audio_base64": base64.b64encode(sound).decode(), "alignment": alignment}


def lines(*documents: dict) -> bytes:
    return b"".join(json.dumps(document).encode() + b"\n" for document in documents)


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with running_fault_server() as server:
        yield server


@pytest.fixture
async def client(server: FaultServer) -> AsyncIterator[MediaProviderService]:
    settings = {
        "adapter": "elevenlabs",
        "base_url": server.url,
        "api_key": KEY,
        "webhook_secrets": SECRETS,
    }
    async with running_media(eleven=settings) as client:
        yield client


@pytest.fixture
async def vendor(server: FaultServer) -> AsyncIterator[AsyncElevenLabs]:
    async with httpx.AsyncClient() as http:
        yield AsyncElevenLabs(base_url=server.url, api_key="k", httpx_client=http)


def speech(**fields: object) -> MediaInput:
    return MediaInput(speech=SpeechInput(**{"text": "hi", "voice": "v1", **fields}))


async def streamed(client: MediaProviderService, given: MediaInput) -> list[pb.StreamSpeechResponse]:
    attempt = pb.MediaAttempt(provider="eleven", model="eleven_v3", input=given)
    stream = client.stream_speech(pb.StreamSpeechRequest(attempt=attempt), Call.internal(20))
    return [message async for message in stream]


@pytest.mark.matrix(row=50, adapter="elevenlabs")
async def test_speech(server: FaultServer, client: MediaProviderService) -> None:
    headers = {"character-cost": "1", "request-id": "r1"}
    server.script = [Head(headers=headers, content_type="audio/pcm"), Send(bytes(16000))]
    given = speech(format="pcm", sample_rate=16000, speed=1.1, language="de-DE", instructions="softly")
    made = await Maker(client, "eleven", "eleven_flash_v2_5").submit(given)
    sent = server.requests[-1]
    assert sent.path == "/v1/text-to-speech/v1?output_format=pcm_16000"
    assert sent.headers["xi-api-key"] == KEY
    assert sent.json() == {
        "text": "hi",
        "model_id": "eleven_flash_v2_5",
        "voice_settings": {"speed": 1.1},
        "language_code": "de",
    }
    usage, facts = made.progress.usage, made.progress.outputs[0].facts
    assert (usage.characters, usage.provider_units, usage.seconds) == (2, 1, 0.5)
    assert (facts.mime, facts.sample_rate, made.provider_request_id) == ("audio/pcm", 16000, "r1")
    assert {entry.name: entry.outcome for entry in made.receipt}["instructions"] == "dropped"


async def test_speech_with_times(
    server: FaultServer, client: MediaProviderService, vendor: AsyncElevenLabs
) -> None:
    server.script = answer(timed(b"sound", ALIGNMENT))
    judged = await vendor.text_to_speech.convert_with_timestamps("v1", text="hi")
    assert judged.alignment.characters == ["h", "i"]
    made = await Maker(client, "eleven", "eleven_v3").submit(speech(timestamps=True))
    assert server.requests[-1].path.startswith("/v1/text-to-speech/v1/with-timestamps?")
    assert made.progress.outputs[0].data == b"sound"
    assert json.loads(made.progress.outputs[0].facts.details_json) == {"alignment": ALIGNMENT}


@pytest.mark.parametrize("size", [1, 7, 61, 10_000])
async def test_a_stream_with_times_is_lines_of_json(
    server: FaultServer, client: MediaProviderService, vendor: AsyncElevenLabs, size: int
) -> None:
    body = lines(timed(b"so", ALIGNMENT), timed(b"und"))
    pieces = [Send(body[start : start + size]) for start in range(0, len(body), size)]
    server.script = [Head(), *pieces]
    judged = [chunk async for chunk in vendor.text_to_speech.stream_with_timestamps("v1", text="hi")]
    assert [chunk.alignment is not None for chunk in judged] == [True, False]
    start, *events, end = await streamed(client, speech(timestamps=True))
    assert server.requests[-1].path.startswith("/v1/text-to-speech/v1/stream/with-timestamps?")
    assert start.start.mime == "audio/mpeg"
    assert b"".join(event.audio for event in events) == b"sound"
    assert [json.loads(event.alignment_json) for event in events if event.alignment_json] == [
        {"alignment": ALIGNMENT}
    ]
    assert end.end.usage.characters == 2


@pytest.mark.matrix(row=50, adapter="elevenlabs")
@pytest.mark.parametrize("rest", [b'{"audio_base64": "c291', b""])
async def test_a_cut_line_or_silence_is_an_error(
    server: FaultServer, client: MediaProviderService, rest: bytes
) -> None:
    good = lines(timed(b"so")) if rest else b""
    server.script = [Head(), Send(good + rest)]
    with pytest.raises(RpcError) as caught:
        await streamed(client, speech(timestamps=True))
    assert caught.value.reason == "STREAM_TRUNCATED"


async def test_a_plain_stream_comes_as_it_is_made(server: FaultServer, client: MediaProviderService) -> None:
    server.script = [Head(content_type="audio/mpeg"), Send(b"so"), Pause(0.05), Send(b"und")]
    _, *events, end = await streamed(client, speech())
    assert b"".join(event.audio for event in events) == b"sound"
    assert len(events) >= 2
    assert end.end.usage.characters == 2


async def test_a_voice_is_cloned_listed_and_forgotten(
    server: FaultServer, client: MediaProviderService, vendor: AsyncElevenLabs
) -> None:
    row = {"voice_id": "v9", "name": "Ann", "verified_languages": [{"language": "en", "model_id": "m"}]}
    server.choose = lambda request: {
        "/v1/voices/add": answer({"voice_id": "v9", "requires_verification": False}),
        "/v1/voices/v9": answer({"status": "ok"}),
        "/v2/voices?page_size=100": answer({"voices": [row], "has_more": True, "next_page_token": "p2"}),
        "/v2/voices?page_size=100&next_page_token=p2": answer({"voices": [], "has_more": False}),
    }.get(request.path, answer({"voices": [row], "has_more": False, "total_count": 1}))
    assert (await vendor.voices.ivc.create(name="Ann", files=[b"sample"])).voice_id == "v9"
    assert (await vendor.voices.search()).voices[0].name == "Ann"
    assert (await vendor.voices.delete("v9")).status == "ok"
    samples = [MediaFile(data=b"one", mime="audio/mpeg"), MediaFile(data=b"two")]
    clone = VoiceCloneInput(name="Ann", description="d", samples=samples, consent_id="consent_1")
    made = await Maker(client, "eleven", "instant").submit(MediaInput(voice_clone=clone))
    assert made.progress.outputs[0].resource == "v9"
    body = server.requests[-1].body
    assert body.count(b'name="files"') == 2
    assert b"consent_1" not in body
    listed = await client.list_voices(pb.ListVoicesRequest(provider="eleven"), Call.internal(20))
    assert [(v.voice, v.display_name, list(v.languages)) for v in listed.voices] == [("v9", "Ann", ["en"])]
    gone = pb.DeleteVoiceRequest(provider="eleven", voice="v9")
    await client.delete_voice(gone, Call.internal(20))
    assert (server.requests[-1].method, server.requests[-1].path) == ("DELETE", "/v1/voices/v9")
    server.choose = None
    server.script = answer({"detail": {"status": "voice_not_found", "message": "no"}}, 404)
    await client.delete_voice(gone, Call.internal(20))


async def test_a_transcript(
    server: FaultServer, client: MediaProviderService, vendor: AsyncElevenLabs
) -> None:
    word = {"text": "hi", "start": 0.1, "end": 1.5, "type": "word", "speaker_id": "s1", "logprob": 0.0}
    document = {"language_code": "en", "language_probability": 1.0, "text": "hi", "words": [word]}
    server.script = answer({**document, "audio_duration_secs": 2.5})
    assert (await vendor.speech_to_text.convert(model_id="scribe_v1", file=b"x")).text == "hi"
    heard = TranscriptionInput(
        audio=MediaFile(data=b"x"), diarise=True, timestamps=["word"], language="en-GB"
    )
    made = await Maker(client, "eleven", "scribe_v1").submit(MediaInput(transcription=heard))
    body = server.requests[-1].body
    for name, value in (("diarize", "true"), ("timestamps_granularity", "word"), ("language_code", "en")):
        assert f'name="{name}"\r\n\r\n{value}\r\n'.encode() in body
    assert (made.progress.outputs[0].text, made.progress.usage.seconds) == ("hi", 2.5)
    server.script = answer(
        {**document, "additional_formats": [{"requested_format": "srt", "content": "1\n00:00"}]}
    )
    heard = TranscriptionInput(audio=MediaFile(data=b"x"), format="srt")
    made = await Maker(client, "eleven", "scribe_v1").submit(MediaInput(transcription=heard))
    assert made.progress.outputs[0].text == "1\n00:00"
    assert made.progress.usage.seconds == 1.5


def refusal(status: str, message: str = "no") -> dict:
    return {"detail": {"status": status, "message": message}}


@pytest.mark.parametrize(
    ("status", "document", "reason", "retryable"),
    [
        pytest.param(
            429,
            refusal("too_many_concurrent_requests"),
            "PROVIDER_CONCURRENCY",
            True,
            marks=pytest.mark.matrix(row=23, adapter="elevenlabs"),
        ),
        pytest.param(
            429,
            refusal("system_busy"),
            "PROVIDER_OVERLOADED",
            True,
            marks=pytest.mark.matrix(row=23, adapter="elevenlabs"),
        ),
        pytest.param(
            401,
            refusal("quota_exceeded"),
            "PROVIDER_BILLING",
            False,
            marks=pytest.mark.matrix(row=22, adapter="elevenlabs"),
        ),
        (401, refusal("invalid_api_key"), "PROVIDER_CREDENTIAL_REFUSED", False),
        (400, refusal("max_character_limit_exceeded"), "CONTEXT_LENGTH_EXCEEDED", False),
        (400, refusal("voice_not_found"), "PROVIDER_REJECTED", False),
        (
            422,
            {"detail": [{"loc": ["body", "text"], "msg": "too short", "type": "x"}]},
            "PROVIDER_REJECTED",
            False,
        ),
    ],
)
async def test_what_refusals_mean(
    server: FaultServer,
    client: MediaProviderService,
    vendor: AsyncElevenLabs,
    status: int,
    document: dict,
    reason: str,
    retryable: bool,
) -> None:
    server.script = answer(document, status)
    once = {"max_retries": 0}
    with pytest.raises(ApiError) as judged:
        await vendor.speech_to_text.convert(model_id="scribe_v1", file=b"x", request_options=once)
    assert judged.value.status_code == status
    with pytest.raises(RpcError) as caught:
        await Maker(client, "eleven", "eleven_v3").submit(speech())
    assert (caught.value.reason, caught.value.metadata["retryable"]) == (reason, str(retryable).lower())
    assert "accepted" not in caught.value.metadata
    assert server.injected[f"status_{status}"] == 2


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (speech(text=""), "input.speech.text"),
        (speech(voice=""), "input.speech.voice"),
        (speech(voice="../v2/x"), "input.speech.voice"),
        (speech(format="flac"), "input.speech.format"),
        (speech(format="pcm", sample_rate=12345), "input.speech.sample_rate"),
        (MediaInput(voice_clone=VoiceCloneInput(name="x")), "input.voice_clone.samples"),
        (MediaInput(voice_clone=VoiceCloneInput()), "input.voice_clone.name"),
        (MediaInput(transcription=TranscriptionInput(format="vtt")), "input.transcription.format"),
    ],
)
async def test_bad_input_costs_nothing(
    server: FaultServer, client: MediaProviderService, given: MediaInput, field: str
) -> None:
    with pytest.raises(RpcError) as caught:
        await Maker(client, "eleven", "m").submit(given)
    assert (caught.value.reason, caught.value.violations[0].field) == ("INVALID_ARGUMENT", field)
    assert not server.requests


BODY = json.dumps(
    {"type": "speech_to_text_transcription", "data": {"request_id": "r1", "transcription": {"text": "hi"}}}
).encode()


def signed(body: bytes = BODY, secret: str = SECRETS[0], age_s: float = 0) -> str:
    at = int(time.time() - age_s)
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v0={digest}"


@pytest.mark.matrix(row=44, adapter="elevenlabs")
@pytest.mark.parametrize("secret", SECRETS)
async def test_a_genuine_notification(
    client: MediaProviderService, vendor: AsyncElevenLabs, secret: str
) -> None:
    header = signed(secret=secret)
    assert vendor.webhooks.construct_event(BODY.decode(), header, secret) == json.loads(BODY)
    maker = Maker(client, "eleven", "scribe_v1")
    read = await maker.read({"elevenlabs-signature": header}, BODY)
    assert (read.provider_job_id, read.progress.outputs[0].text) == ("r1", "hi")
    again = await maker.read({"elevenlabs-signature": signed(secret=secret)}, BODY)
    assert again.event_id == read.event_id


@pytest.mark.matrix(row=44, adapter="elevenlabs")
@pytest.mark.parametrize(
    ("sign", "body", "because"),
    [
        (lambda: "", BODY, "missing or malformed"),
        (lambda: "t=1,v1=x", BODY, "missing or malformed"),
        (lambda: "t=x,v0=x", BODY, "missing or malformed"),
        (lambda: f"t={'9' * 5000},v0=x", BODY, "missing or malformed"),
        (lambda: signed() + "é", BODY, "signature is wrong"),
        (lambda: signed(secret="another"), BODY, "signature is wrong"),
        (lambda: signed(age_s=31 * 60), BODY, "too old"),
        # Signed when the test runs: minutes after collection it would be now.
        (lambda: signed(age_s=-10 * 60), BODY, "ahead"),
        (lambda: signed(), BODY + b" ", "signature is wrong"),
    ],
    ids=["none", "scheme", "time", "digits", "letters", "secret", "old", "future", "altered"],
)
async def test_a_forged_notification(
    client: MediaProviderService, sign: Callable[[], str], body: bytes, because: str
) -> None:
    with pytest.raises(RpcError, match=because) as caught:
        await Maker(client, "eleven", "scribe_v1").read({"elevenlabs-signature": sign()}, body)
    assert caught.value.reason == "INVALID_CREDENTIAL"


async def test_a_genuine_notification_of_something_else(client: MediaProviderService) -> None:
    body = b'{"type": "voice_removal_notice", "data": {}}'
    with pytest.raises(RpcError, match="voice_removal_notice") as caught:
        await Maker(client, "eleven", "m").read({"elevenlabs-signature": signed(body)}, body)
    assert caught.value.reason == "INVALID_ARGUMENT"
