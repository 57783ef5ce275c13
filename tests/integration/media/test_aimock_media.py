"""Against a fake of the vendors' APIs that others wrote; their own clients accept it first."""

from __future__ import annotations

import base64
from pathlib import Path

import httpx
import openai
import pytest
from elevenlabs.client import AsyncElevenLabs
from omnihub.common.v1.media_pb2 import (
    ImageEditInput,
    ImageInput,
    MediaFile,
    MediaInput,
    SpeechInput,
    TranscriptionInput,
    VideoInput,
)

from services.common.rpc import RpcError
from tests.support.aimock import running_aimock
from tests.support.media import Maker, running_media

PICTURE = b"\x89PNG\r\n\x1a\nnot really"
SOUND = b"ID3\x04\x00 not really, but long enough"
KEY = "sk-test-0123456789"
FIXTURES = [
    {
        "match": {"userMessage": "a boat", "endpoint": "image"},
        "response": {"image": {"b64Json": base64.b64encode(PICTURE).decode(), "revisedPrompt": "a red boat"}},
    },
    {
        "match": {"userMessage": "a link", "endpoint": "image"},
        "response": {"image": {"url": "https://example.org/picture.png"}},
    },
    {
        "match": {"userMessage": "a boat"},
        "response": {"images": [{"b64Json": base64.b64encode(PICTURE).decode()}]},
    },
    {"match": {"endpoint": "speech"}, "response": {"audio": base64.b64encode(SOUND).decode()}},
    {"match": {"endpoint": "elevenlabs-tts"}, "response": {"audio": base64.b64encode(SOUND).decode()}},
    {
        "match": {"endpoint": "transcription", "model": "whisper-1"},
        "response": {"transcription": {"text": "hello there", "usage": {"type": "duration", "seconds": 7}}},
    },
    {
        "match": {"endpoint": "transcription"},
        "response": {
            "transcription": {
                "text": "hello there",
                "usage": {
                    "type": "tokens",
                    "input_tokens": 14,
                    "input_token_details": {"text_tokens": 4, "audio_tokens": 10},
                    "output_tokens": 45,
                    "total_tokens": 59,
                },
            }
        },
    },
    {
        "match": {"endpoint": "video", "userMessage": "waves"},
        "response": {"video": {"id": "video_1", "status": "completed", "url": "https://example.org/v.mp4"}},
    },
]


def settings(adapter: str, url: str) -> dict:
    return {"adapter": adapter, "base_url": url, "api_key": KEY}


@pytest.mark.matrix(row=50, adapter="openai")
async def test_openai(tmp_path: Path) -> None:
    async with running_aimock(FIXTURES, tmp_path) as url:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as sdk:
            made = await sdk.images.generate(model="gpt-image-1", prompt="a boat")
            assert base64.b64decode(made.data[0].b64_json) == PICTURE
            spoken = await sdk.audio.speech.create(model="tts-1", voice="alloy", input="hello")
            assert spoken.content == SOUND
            heard = await sdk.audio.transcriptions.create(model="whisper-1", file=("a.mp3", SOUND))
            assert heard.text == "hello there"
            with pytest.warns(DeprecationWarning, match="Sora"):  # noqa: PT031 - both of them warn
                video = await sdk.videos.create(prompt="waves")
                assert (await sdk.videos.retrieve(video.id)).status == "completed"
        async with running_media(wall=settings("openai", f"{url}/v1")) as client:
            picture = Maker(client, "wall", "gpt-image-1")
            output = (await picture.submit()).progress.outputs[0]
            assert (output.data, output.facts.revised_prompt) == (PICTURE, "a red boat")
            linked = await picture.submit(MediaInput(image=ImageInput(prompt="a link")))
            assert linked.progress.outputs[0].url == "https://example.org/picture.png"
            edit = ImageEditInput(prompt="a boat", images=[MediaFile(data=PICTURE)])
            changed = await picture.submit(MediaInput(image_edit=edit))
            assert changed.progress.outputs[0].data == PICTURE
            await check_sound(Maker(client, "wall", "tts-1"))
            await check_transcripts(client)
            video = Maker(client, "wall", "sora-2")
            begun = await video.submit(MediaInput(video=VideoInput(prompt="waves", duration_s=4)))
            assert begun.provider_job_id == "video_1"
            assert (await video.poll("video_1")).state == "succeeded"
            with pytest.raises(RpcError) as caught:
                await video.poll("video_2")
            assert caught.value.reason == "NOT_FOUND"


async def check_sound(speaker: Maker) -> None:
    said = await speaker.submit(MediaInput(speech=SpeechInput(text="hällo", voice="v1")))
    output, usage = said.progress.outputs[0], said.progress.usage
    assert (output.data, output.facts.mime, usage.characters) == (SOUND, "audio/mpeg", 5)


async def check_transcripts(client) -> None:
    given = MediaInput(transcription=TranscriptionInput(audio=MediaFile(data=SOUND, mime="audio/mpeg")))
    by_time = (await Maker(client, "wall", "whisper-1").submit(given)).progress
    assert (by_time.outputs[0].text, by_time.usage.seconds) == ("hello there", 7)
    assert not by_time.usage.estimated
    by_tokens = (await Maker(client, "wall", "gpt-4o-transcribe").submit(given)).progress.usage
    assert (by_tokens.tokens.input_total, by_tokens.tokens.input_audio) == (14, 10)
    assert (by_tokens.tokens.output_total, by_tokens.seconds) == (45, 0)


@pytest.mark.matrix(row=50, adapter="elevenlabs")
async def test_elevenlabs(tmp_path: Path) -> None:
    async with running_aimock(FIXTURES, tmp_path) as url:
        async with httpx.AsyncClient() as http:
            sdk = AsyncElevenLabs(base_url=url, api_key="k", httpx_client=http)
            spoken = b"".join([piece async for piece in sdk.text_to_speech.convert("v1", text="hello")])
            assert spoken == SOUND
        async with running_media(eleven=settings("elevenlabs", url)) as client:
            await check_sound(Maker(client, "eleven", "eleven_multilingual_v2"))
