"""Speech and transcriptions through the official client."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import openai
import pytest
from omnihub.router.v1 import media_router_service_pb2 as router

from services.common.rpc import RpcError
from tests.support.media_facade import COST, FILE_LIMIT, TEXT, MediaFacade, a_recording


async def test_speech_and_what_it_cost(client: openai.AsyncOpenAI, facade: MediaFacade) -> None:
    answer = await client.audio.speech.with_raw_response.create(
        model="fake0/m", voice="nova", input="Hello", response_format="wav", speed=1.5, instructions="softly"
    )
    assert answer.content == a_recording()
    assert answer.headers["content-type"] == "audio/wav"
    assert answer.headers["x-omnihub-cost"] == COST
    asked = facade.maker.attempts[0].input.speech
    assert (asked.text, asked.voice, asked.format, asked.speed) == ("Hello", "nova", "wav", 1.5)
    assert asked.instructions == "softly"


async def test_speech_in_pieces_and_as_events(client: openai.AsyncOpenAI, facade: MediaFacade) -> None:
    async with client.audio.speech.with_streaming_response.create(
        model="fake0/m", voice="nova", input="Hello"
    ) as answer:
        assert b"".join([piece async for piece in answer.iter_bytes(512)]) == a_recording()
    async with client.audio.speech.with_streaming_response.create(
        model="fake0/m", voice={"id": "nova"}, input="Hello", stream_format="sse"
    ) as answer:
        lines = [json.loads(line[6:]) async for line in answer.iter_lines() if line]
    assert [line["type"] for line in lines] == ["speech.audio.delta", "speech.audio.done"]
    assert base64.b64decode(lines[0]["audio"]) == a_recording()
    assert [attempt.input.speech.voice for attempt in facade.maker.attempts] == ["nova", "nova"]


async def test_a_cloned_voice_that_is_not_there(client: openai.AsyncOpenAI, facade: MediaFacade) -> None:
    with pytest.raises(openai.BadRequestError, match="there is no voice voice_1") as refused:
        await client.audio.speech.create(model="fake0/m", voice={"id": "voice_1"}, input="Hello")
    assert refused.value.param == "voice"
    assert not facade.maker.plans
    assert not facade.till.holds


async def test_an_unknown_voice(client: openai.AsyncOpenAI, facade: MediaFacade) -> None:
    facade.maker.failures = [RpcError("INVALID_ARGUMENT", "input.speech.voice: 'Nobody' is not known")]
    with pytest.raises(openai.BadRequestError) as refused:
        await client.audio.speech.create(model="fake0/m", voice="Nobody", input="Hello")
    assert (refused.value.param, refused.value.body["message"]) == ("voice", "voice: 'Nobody' is not known")
    assert not facade.till.charges


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": "x" * 100_001}, "input"),
        ({"voice": 7}, "voice"),
        ({"speed": 9}, "speed"),
        ({"speed": "fast"}, "speed"),
        ({"response_format": "midi"}, "response_format"),
        ({"stream_format": "ws"}, "stream_format"),
    ],
)
async def test_bad_speech_costs_nothing(
    http: httpx.AsyncClient, facade: MediaFacade, wrong: dict[str, Any], param: str
) -> None:
    answer = await http.post("/v1/audio/speech", json={"model": "m", "voice": "v", "input": "Hi", **wrong})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert not facade.till.holds


async def test_a_transcription(client: openai.AsyncOpenAI, facade: MediaFacade) -> None:
    raw = await client.audio.transcriptions.with_raw_response.create(
        model="fake0/m",
        file=("talk.wav", a_recording()),
        language="en",
        temperature=0.2,
        extra_body={"beam": "3"},
    )
    answer = raw.parse()
    assert answer.text == TEXT
    assert answer.usage.seconds == 3.5
    assert raw.headers["x-omnihub-cost"] == COST
    assert json.loads(raw.headers["x-omnihub-receipt"])[0]["name"] == "beam"
    asked = facade.maker.attempts[0].input.transcription
    assert asked.audio.data == a_recording()
    assert (asked.audio.name, asked.language, asked.format) == ("talk.wav", "en", "json")


async def test_a_transcription_as_text_and_subtitles(client: openai.AsyncOpenAI) -> None:
    async def written(form: Any) -> str:
        return await client.audio.transcriptions.create(
            model="fake0/m", file=("talk.wav", a_recording()), response_format=form
        )

    assert await written("text") == TEXT
    assert await written("srt") == (
        "1\n00:00:00,000 --> 00:00:01,250\nA boat\n\n2\n00:00:01,250 --> 01:01:01,500\nsails.\n"
    )
    assert await written("vtt") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.250\nA boat\n\n00:00:01.250 --> 01:01:01.500\nsails.\n"
    )


async def test_a_transcription_with_times(client: openai.AsyncOpenAI, facade: MediaFacade) -> None:
    answer = await client.audio.transcriptions.create(
        model="fake0/m",
        file=("talk.wav", a_recording()),
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert (answer.text, answer.language, answer.duration) == (TEXT, "english", 3.5)
    assert [segment.text for segment in answer.segments] == [" A boat", " sails."]
    assert list(facade.maker.attempts[0].input.transcription.timestamps) == ["word", "segment"]


async def test_a_streamed_transcription(client: openai.AsyncOpenAI) -> None:
    stream = await client.audio.transcriptions.create(
        model="fake0/m", file=("talk.wav", a_recording()), stream=True
    )
    events = [event async for event in stream]
    assert [event.type for event in events] == ["transcript.text.delta", "transcript.text.done"]
    assert events[-1].text == TEXT


@pytest.mark.parametrize(
    ("data", "files", "param"),
    [
        ({"model": "m"}, {"language": (None, "en")}, "file"),
        ({"model": "m", "response_format": "docx"}, {"file": b"x"}, "response_format"),
        ({"model": "m", "stream": "true", "response_format": "srt"}, {"file": b"x"}, "response_format"),
        ({"model": "m", "timestamp_granularities[]": "page"}, {"file": b"x"}, "timestamp_granularities"),
        ({"model": "m", "temperature": "2"}, {"file": b"x"}, "temperature"),
    ],
)
async def test_bad_transcriptions_cost_nothing(
    http: httpx.AsyncClient, facade: MediaFacade, data: dict[str, str], files: dict[str, Any], param: str
) -> None:
    answer = await http.post("/v1/audio/transcriptions", data=data, files=files)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert not facade.till.holds


async def test_a_recording_that_is_too_large_or_not_in_a_form(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, facade: MediaFacade
) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        await client.audio.transcriptions.create(model="m", file=("a.wav", bytes(FILE_LIMIT + 1)))
    assert (refused.value.status_code, refused.value.param) == (413, "file")
    answer = await http.post("/v1/audio/transcriptions", json={"model": "m"})
    assert answer.status_code == 400
    assert "multipart/form-data" in answer.json()["error"]["message"]
    assert not facade.till.holds


def streamed(*messages: Any) -> list[Any]:
    start = router.StreamSpeechResponse()
    start.start.mime = "audio/mpeg"
    start.start.receipt.add(name="mood", outcome="dropped", detail="not known")
    return [start, *(router.StreamSpeechResponse(audio=each) for each in (b"one", b"two")), *messages]


def the_end() -> Any:
    end = router.StreamSpeechResponse()
    end.end.model_used, end.end.cost = "fake0/m", "0.001"
    return end


async def test_speech_as_it_is_made(client: openai.AsyncOpenAI, facade: MediaFacade) -> None:
    facade.maker.speech = streamed(the_end())
    async with client.audio.speech.with_streaming_response.create(
        model="fake0/m", voice="nova", input="Hello", extra_body={"mood": "glad"}
    ) as answer:
        assert b"".join([piece async for piece in answer.iter_bytes()]) == b"onetwo"
        assert answer.headers["content-type"] == "audio/mpeg"
        assert json.loads(answer.headers["x-omnihub-receipt"])[0]["name"] == "mood"
    assert json.loads(facade.maker.spoken[0].extension_json) == {"mood": "glad"}
    assert not facade.maker.plans


async def test_speech_with_a_key_is_a_job(client: openai.AsyncOpenAI, facade: MediaFacade) -> None:
    facade.maker.speech = streamed(the_end())
    headers = {"Idempotency-Key": "hello-1"}
    answer = await client.audio.speech.create(model="m", voice="v", input="Hi", extra_headers=headers)
    assert answer.content == a_recording()
    assert not facade.maker.spoken


async def test_speech_that_breaks_off_never_looks_complete(
    client: openai.AsyncOpenAI, facade: MediaFacade
) -> None:
    facade.maker.speech = streamed(RpcError("PROVIDER_FAILED", "gone"))
    with pytest.raises(openai.APIConnectionError):
        await client.audio.speech.create(model="fake0/m", voice="nova", input="Hello")
    facade.maker.speech = streamed()
    async with client.audio.speech.with_streaming_response.create(
        model="fake0/m", voice="nova", input="Hello", stream_format="sse"
    ) as answer:
        lines = [json.loads(line[6:]) async for line in answer.iter_lines() if line]
    assert "error" in lines[-1]
    assert all(line.get("type") != "speech.audio.done" for line in lines)
