"""What rules on this machine make: pictures always, speech where its program is installed."""

from __future__ import annotations

import io
import shutil
import stat
import sys
from pathlib import Path

import pytest
from omnihub.common.v1.media_pb2 import ImageInput, MediaFile, MediaInput, SpeechInput, UpscaleInput
from omnihub.provider.v1 import media_provider_service_pb2 as pb
from PIL import Image

from services.common.rpc import Call, RpcError
from tests.support.media import Maker, running_media

CALL = Call("req_unit")
# Speaks a tenth of a second for each letter, and knows two voices.
STAND_IN = f"""#!{sys.executable}
import io, sys, wave
if "--voices" in sys.argv:
    print("Pty Language       Age/Gender VoiceName          File                 Other Languages")
    print(" 5  de              --/M      German             gmw/de")
    print(" 2  en-gb           --/M      English_(Great_Britain) gmw/en        (en 2)")
    sys.exit()
voice = sys.argv[sys.argv.index("-v") + 1]
if voice not in ("en", "de"):
    sys.exit("Error: The specified espeak-ng voice does not exist.")
made = io.BytesIO()
with wave.open(made, "wb") as writer:
    writer.setnchannels(1)
    writer.setsampwidth(2)
    writer.setframerate(22050)
    writer.writeframes(bytes(2 * 2205 * len(sys.stdin.read())))
sys.stdout.buffer.write(made.getvalue())
"""


@pytest.fixture
def spoken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program in the place of the real one."""
    program = tmp_path / "espeak-ng"
    program.write_text(STAND_IN)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def speech(**fields: object) -> MediaInput:
    return MediaInput(speech=SpeechInput(**{"text": "hello", **fields}))


async def test_pictures_account_for_every_parameter() -> None:
    async with running_media() as client:
        maker = Maker(client, "local", "default")
        given = ImageInput(prompt="x", width=64, height=32, style="oil", aspect_ratio="1:1", background="red")
        made = await maker.submit(MediaInput(image=given, extension_json='{"sampler": "x"}'))
        again = await maker.submit(MediaInput(image=given))
        with pytest.raises(RpcError) as caught:
            await maker.submit(MediaInput(image=given), strict=True)
    outcomes = {entry.name: entry.outcome for entry in made.receipt}
    assert {name for name, outcome in outcomes.items() if outcome == "dropped"} == {
        "style",
        "aspect_ratio",
        "background",
        "sampler",
    }
    assert (outcomes["prompt"], caught.value.reason) == ("forwarded", "PARAMETER_UNSUPPORTED")
    with Image.open(io.BytesIO(made.progress.outputs[0].data)) as picture:
        assert picture.size == (64, 32)
    assert made.progress.outputs[0].data == again.progress.outputs[0].data


async def test_pictures_are_enlarged() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 4)).save(buffer, "PNG")
    async with running_media() as client:
        maker = Maker(client, "local", "default")
        given = UpscaleInput(file=MediaFile(data=buffer.getvalue()), factor=3)
        made = await maker.submit(MediaInput(upscale=given))
        with pytest.raises(RpcError) as caught:
            await maker.submit(MediaInput(upscale=UpscaleInput(file=MediaFile(data=b"no picture"))))
    assert (made.progress.outputs[0].facts.width, made.progress.outputs[0].facts.height) == (24, 12)
    assert caught.value.violations[0].field == "input.upscale.file"


@pytest.mark.usefixtures("spoken")
async def test_speech_voices_and_streams() -> None:
    async with running_media() as client:
        maker = Maker(client, "local", "default")
        made = await maker.submit(speech(voice="de"))
        voices = await client.list_voices(pb.ListVoicesRequest(provider="local"), CALL)
        attempt = pb.MediaAttempt(provider="local", model="default", input=speech())
        stream = client.stream_speech(pb.StreamSpeechRequest(attempt=attempt), CALL)
        start, *audio, end = [message async for message in stream]
        with pytest.raises(RpcError, match="does not exist") as caught:
            await maker.submit(speech(voice="xx"))
        with pytest.raises(RpcError) as refused:
            await client.delete_voice(pb.DeleteVoiceRequest(provider="local", voice="de"), CALL)
    usage, facts = made.progress.usage, made.progress.outputs[0].facts
    assert (usage.characters, usage.seconds, facts.sample_rate) == (5, 0.5, 22050)
    assert [(v.voice, v.display_name) for v in voices.voices] == [
        ("de", "German"),
        ("en-gb", "English (Great Britain)"),
    ]
    assert (start.start.mime, end.end.usage.characters) == ("audio/wav", 5)
    assert b"".join(message.audio for message in audio) == made.progress.outputs[0].data
    assert caught.value.violations[0].field == "input.speech.voice"
    assert refused.value.reason == "PARAMETER_UNSUPPORTED"


async def test_without_the_program_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    async with running_media() as client:
        with pytest.raises(RpcError, match="makes image, upscale, not speech"):
            await Maker(client, "local", "default").submit(speech())
        assert not (await client.list_voices(pb.ListVoicesRequest(provider="local"), CALL)).voices


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
async def test_the_real_program_speaks() -> None:
    async with running_media() as client:
        made = await Maker(client, "local", "default").submit(speech(text="Hello there.", language="en"))
        voices = await client.list_voices(pb.ListVoicesRequest(provider="local"), CALL)
    assert 0.3 < made.progress.usage.seconds < 5
    assert made.progress.outputs[0].data[:4] == b"RIFF"
    assert "de" in {voice.voice for voice in voices.voices}
