"""What OpenAI's media answers look like in full, on a server of our own that its client accepts."""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncIterator

import openai
import pytest
from omnihub.common.v1.media_pb2 import (
    ImageEditInput,
    ImageInput,
    MediaFile,
    MediaInput,
    SpeechInput,
    TranscriptionInput,
    VideoInput,
)
from omnihub.provider.v1 import media_provider_service_pb2 as pb
from omnihub.provider.v1.media_provider_service_api import MediaProviderService

from services.common.rpc import Call, RpcError
from tests.support.fault_server import (
    Disconnect,
    Endless,
    FaultServer,
    Head,
    Send,
    answer,
    running_fault_server,
)
from tests.support.media import Maker, running_media

KEY = "sk-test-0123456789"
PICTURE = base64.b64encode(b"picture").decode()
IMAGES = {
    "created": 1,
    "data": [{"b64_json": PICTURE}, {"b64_json": PICTURE}],
    "output_format": "webp",
    "size": "1536x1024",
    "usage": {
        "input_tokens": 50,
        "output_tokens": 4000,
        "total_tokens": 4050,
        "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
    },
}
VIDEO = {
    "id": "video_9",
    "object": "video",
    "created_at": 1,
    "model": "sora-2",
    "status": "in_progress",
    "progress": 40,
    "seconds": "8",
    "size": "1280x720",
}


def wave(samples: int, promised: int | None = None) -> bytes:
    size = samples * 2 if promised is None else promised
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        (36 + size) % 2**32,
        b"WAVE",
        b"fmt ",
        16,
        1,
        1,
        24000,
        48000,
        2,
        16,
        b"data",
        size,
    )
    return header + bytes(samples * 2)


def sound(data: bytes, kind: str = "audio/mpeg") -> list:
    return [Head(content_type=kind), Send(data)]


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with running_fault_server() as server:
        yield server


@pytest.fixture
async def client(server: FaultServer) -> AsyncIterator[MediaProviderService]:
    settings = {"adapter": "openai", "base_url": f"{server.url}/v1", "api_key": KEY}
    async with running_media(wall=settings) as client:
        yield client


def outcomes(response: pb.SubmitMediaResponse) -> dict[str, str]:
    return {entry.name: entry.outcome for entry in response.receipt}


async def test_images_with_their_tokens(server: FaultServer, client: MediaProviderService) -> None:
    server.script = answer(IMAGES)
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k") as sdk:
        judged = await sdk.images.generate(model="gpt-image-1", prompt="x", n=2, size="1536x1024")
        assert judged.usage.input_tokens_details.image_tokens == 40
    given = ImageInput(
        prompt="a boat", count=2, width=1536, height=1024, format="webp", quality="high", steps=9, seed=3
    )
    made = await Maker(client, "wall", "gpt-image-1").submit(MediaInput(image=given))
    sent = server.requests[-1]
    assert (sent.path, sent.headers["Authorization"]) == ("/v1/images/generations", f"Bearer {KEY}")
    assert sent.json() == {
        "model": "gpt-image-1",
        "prompt": "a boat",
        "n": 2,
        "size": "1536x1024",
        "output_format": "webp",
        "quality": "high",
    }
    assert (outcomes(made)["steps"], outcomes(made)["seed"]) == ("dropped", "dropped")
    facts, usage = made.progress.outputs[1].facts, made.progress.usage
    assert (facts.mime, facts.width, facts.height) == ("image/webp", 1536, 1024)
    assert (usage.images, usage.tokens.input_total, usage.tokens.input_image) == (2, 50, 40)
    assert (usage.tokens.output_total, usage.estimated) == (4000, False)


async def test_strict_refuses_what_would_be_dropped(
    server: FaultServer, client: MediaProviderService
) -> None:
    with pytest.raises(RpcError) as caught:
        await Maker(client, "wall", "gpt-image-1").submit(
            MediaInput(image=ImageInput(prompt="x", steps=9)), strict=True
        )
    assert (caught.value.reason, caught.value.violations[0].field) == ("PARAMETER_UNSUPPORTED", "steps")
    assert not server.requests


async def test_images_are_changed_by_a_form(server: FaultServer, client: MediaProviderService) -> None:
    server.script = answer({"data": [{"b64_json": PICTURE}]})
    file = MediaFile(data=b"one", mime="image/png", name='../a".png')
    given = ImageEditInput(prompt="x", images=[file, MediaFile(data=b"two")], mask=MediaFile(data=b"three"))
    made = await Maker(client, "wall", "gpt-image-1").submit(MediaInput(image_edit=given))
    body = server.requests[-1].body
    assert body.count(b'name="image[]"') == 2
    assert b'filename="a.png"' in body
    assert b'name="mask"' in body
    assert b"Content-Type: image/png\r\n" in body
    # Tokens that should have been told are guessed, and it says so.
    assert made.progress.usage.estimated
    assert made.progress.usage.tokens.output_total > 0


@pytest.mark.matrix(row=50, adapter="openai")
@pytest.mark.parametrize(
    ("given", "mime"),
    [("", "audio/mpeg"), ("opus", "audio/ogg"), ("flac", "audio/flac"), ("aac", "audio/aac")],
)
async def test_speech_is_bytes(
    server: FaultServer, client: MediaProviderService, given: str, mime: str
) -> None:
    server.script = sound(b"sound")
    spoken = SpeechInput(text="hello", format=given, language="de", instructions="softly", speed=0.7)
    made = await Maker(client, "wall", "tts-1").submit(MediaInput(speech=spoken))
    assert server.requests[-1].json() == {
        "model": "tts-1",
        "input": "hello",
        "voice": "alloy",
        "response_format": given or "mp3",
        "instructions": "softly",
        "speed": 0.7,
    }
    assert (made.progress.outputs[0].data, made.progress.outputs[0].facts.mime) == (b"sound", mime)
    assert (made.progress.usage.characters, outcomes(made)["language"]) == (5, "dropped")
    assert outcomes(made)["voice"] == "added"


@pytest.mark.matrix(row=50, adapter="openai")
async def test_seconds_are_counted_where_they_can_be(
    server: FaultServer, client: MediaProviderService
) -> None:
    for kind, data in (("wav", wave(48000)), ("pcm", bytes(96000)), ("wav", wave(48000, 0xFFFFFFFF))):
        server.script = sound(data, "audio/wav")
        made = await Maker(client, "wall", "tts-1").submit(
            MediaInput(speech=SpeechInput(text="hello", format=kind))
        )
        facts, usage = made.progress.outputs[0].facts, made.progress.usage
        assert (facts.duration_s, facts.sample_rate, usage.seconds, usage.estimated) == (2, 24000, 2, False)


@pytest.mark.matrix(row=50, adapter="openai")
@pytest.mark.parametrize(
    "script",
    [
        [Head(headers={"Content-Length": "100"}, content_type="audio/mpeg"), Send(b"half"), Disconnect()],
        [Head(content_type="audio/mpeg"), Send(b"half"), Disconnect()],
        [Head(content_type="audio/mpeg")],
        sound(wave(10, 4000), "audio/wav"),
    ],
    ids=["short", "chunked", "silence", "header"],
)
async def test_cut_sound_is_an_error(server: FaultServer, client: MediaProviderService, script: list) -> None:
    server.script = script
    kind = "wav" if script[1:] and b"RIFF" in getattr(script[1], "data", b"") else "mp3"
    speaker = Maker(client, "wall", "tts-1")
    with pytest.raises(RpcError) as caught:
        await speaker.submit(MediaInput(speech=SpeechInput(text="hello", format=kind)))
    assert (caught.value.reason, caught.value.metadata["phase"]) == ("STREAM_TRUNCATED", "mid_stream")
    assert len(server.requests) == 1


async def test_speech_streams(server: FaultServer, client: MediaProviderService) -> None:
    server.script = [Head(content_type="audio/pcm"), Send(bytes(24000)), Send(bytes(24000))]
    attempt = pb.MediaAttempt(
        provider="wall", model="tts-1", input=MediaInput(speech=SpeechInput(text="hello", format="pcm"))
    )
    stream = client.stream_speech(pb.StreamSpeechRequest(attempt=attempt), Call.internal(20))
    start, *audio, end = [message async for message in stream]
    assert (start.start.mime, start.start.sample_rate) == ("audio/pcm", 24000)
    assert sum(len(message.audio) for message in audio) == 48000
    assert (end.end.usage.characters, end.end.usage.seconds) == (5, 1)


@pytest.mark.matrix(row=40, adapter="openai")
async def test_leaving_a_stream_closes_the_connection(
    server: FaultServer, client: MediaProviderService
) -> None:
    server.script = [Head(content_type="audio/mpeg"), Endless(b"sound", 0.01)]
    attempt = pb.MediaAttempt(
        provider="wall", model="tts-1", input=MediaInput(speech=SpeechInput(text="hello"))
    )
    stream = client.stream_speech(pb.StreamSpeechRequest(attempt=attempt), Call.internal(20))
    async for message in stream:
        if message.audio:
            break
    await stream.aclose()
    await server.hung_up.wait()


SRT = "1\n00:00:00,000 --> 00:00:02,500\nhello\n"


@pytest.mark.parametrize(
    ("given", "asked", "script", "text", "seconds"),
    [
        ("", "json", answer({"text": "hello", "usage": {"type": "duration", "seconds": 3}}), "hello", 3),
        ("text", "json", answer({"text": "hello", "usage": {"type": "duration", "seconds": 3}}), "hello", 3),
        ("verbose_json", "verbose_json", answer({"text": "hello", "duration": 4.5}), "hello", 4.5),
        ("srt", "srt", [Head(content_type="text/plain"), Send(SRT.encode())], SRT, 2.5),
        (
            "vtt",
            "vtt",
            [Head(content_type="text/vtt"), Send(b"WEBVTT\n\n00:00.000 --> 00:01.500\nhi\n")],
            "",
            1.5,
        ),
    ],
)
async def test_transcripts_in_every_format(
    server: FaultServer,
    client: MediaProviderService,
    given: str,
    asked: str,
    script: list,
    text: str,
    seconds: float,
) -> None:
    server.script = script
    heard = TranscriptionInput(audio=MediaFile(data=b"x"), format=given, language="de-DE", prompt="p")
    made = await Maker(client, "wall", "whisper-1").submit(MediaInput(transcription=heard))
    body = server.requests[-1].body
    assert f'name="response_format"\r\n\r\n{asked}\r\n'.encode() in body
    assert b'name="language"\r\n\r\nde\r\n' in body
    assert made.progress.outputs[0].text.startswith(text)
    assert made.progress.usage.seconds == seconds


async def test_who_speaks_is_told_in_the_details(server: FaultServer, client: MediaProviderService) -> None:
    document = {"text": "hello", "segments": [{"speaker": "A", "text": "hello"}]}
    server.script = answer(document)
    heard = TranscriptionInput(audio=MediaFile(data=b"x" * 8000), diarise=True)
    made = await Maker(client, "wall", "gpt-4o-transcribe-diarize").submit(MediaInput(transcription=heard))
    assert b"diarized_json" in server.requests[-1].body
    assert '"speaker":"A"' in made.progress.outputs[0].facts.details_json
    # Nobody told how long it is.
    assert (made.progress.usage.seconds, made.progress.usage.estimated) == (1, True)


@pytest.mark.matrix(row=43, adapter="openai")
async def test_a_video_from_begin_to_end(server: FaultServer, client: MediaProviderService) -> None:
    done = {**VIDEO, "status": "completed", "progress": 100}
    server.scripts = {
        "/v1/videos": answer({**VIDEO, "status": "queued", "progress": 0}),
        "/v1/videos/video_9": answer(VIDEO),
        "/v1/videos/video_9/remix": answer({**VIDEO, "id": "video_10", "status": "queued"}),
        "/v1/videos/video_9/content": sound(b"film", "video/mp4"),
    }
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k") as sdk:
        with pytest.warns(DeprecationWarning, match="Sora"):  # noqa: PT031 - each of them warns
            assert (await sdk.videos.retrieve("video_9")).progress == 40
            assert (await sdk.videos.remix("video_9", prompt="x")).id == "video_10"
            assert (await sdk.videos.download_content("video_9")).content == b"film"
    maker = Maker(client, "wall", "sora-2")
    given = VideoInput(prompt="x", duration_s=8, width=1280, height=720, first_frame=MediaFile(data=b"f"))
    begun = await maker.submit(MediaInput(video=given))
    assert (begun.provider_job_id, begun.progress.state) == ("video_9", "queued")
    assert b'name="input_reference"' in server.requests[-1].body
    running = await maker.poll("video_9")
    assert (running.state, round(running.fraction, 2)) == ("running", 0.4)
    server.scripts["/v1/videos/video_9"] = answer(done)
    ended = await maker.poll("video_9")
    assert (ended.state, ended.usage.seconds, ended.outputs[0].facts.width) == ("succeeded", 8, 1280)
    assert await maker.fetch(ended.outputs[0].fetch_reference) == b"film"
    assert server.requests[-1].headers["Authorization"] == f"Bearer {KEY}"
    remixed = await maker.submit(MediaInput(video=VideoInput(prompt="y", remix_of_job_id="video_9")))
    assert (remixed.provider_job_id, server.requests[-1].json()) == ("video_10", {"prompt": "y"})


@pytest.mark.matrix(row=47, adapter="openai")
async def test_a_video_that_fails(server: FaultServer, client: MediaProviderService) -> None:
    error = {"code": "moderation_blocked", "message": "no"}
    server.script = answer({**VIDEO, "status": "failed", "error": error})
    ended = await Maker(client, "wall", "sora-2").poll("video_9")
    assert (ended.state, ended.reason, ended.unbilled) == ("failed", "CONTENT_FILTERED", True)


@pytest.mark.matrix(row=48, adapter="openai")
async def test_a_redirect_is_not_followed_and_ids_cannot_leave_the_path(
    server: FaultServer, client: MediaProviderService
) -> None:
    server.script = [Head(302, {"Location": "http://127.0.0.1:9/x"}), Send(b"")]
    maker = Maker(client, "wall", "sora-2")
    with pytest.raises(RpcError) as caught:
        await maker.fetch("video_9")
    assert caught.value.reason == "PROVIDER_FAILED"
    for hostile in ("../files/secret", "a/b", "x?y", "%2e%2e"):
        with pytest.raises(RpcError) as caught:
            await maker.fetch(hostile)
        assert caught.value.reason == "NOT_FOUND"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (MediaInput(speech=SpeechInput()), "input.speech.text"),
        (MediaInput(speech=SpeechInput(text="x", format="mp9")), "input.speech.format"),
        (MediaInput(speech=SpeechInput(text="x", speed=9)), "input.speech.speed"),
        (MediaInput(image=ImageInput(prompt="x", width=5)), "input.image.width"),
        (MediaInput(image_edit=ImageEditInput(prompt="x")), "input.image_edit.images"),
        (MediaInput(video=VideoInput(prompt="x", duration_s=4.5)), "input.video.duration_s"),
        (MediaInput(transcription=TranscriptionInput(format="x")), "input.transcription.format"),
        (MediaInput(transcription=TranscriptionInput(timestamps=["x"])), "input.transcription.timestamps"),
        (MediaInput(transcription=TranscriptionInput()), "input.transcription.audio"),
        (MediaInput(image=ImageInput(prompt="x"), extension_json="[1]"), "input.extension_json"),
    ],
)
async def test_bad_input_costs_nothing(
    server: FaultServer, client: MediaProviderService, given: MediaInput, field: str
) -> None:
    with pytest.raises(RpcError) as caught:
        await Maker(client, "wall", "m").submit(given)
    assert (caught.value.reason, caught.value.violations[0].field) == ("INVALID_ARGUMENT", field)
    assert not server.requests
