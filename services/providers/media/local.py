"""Images, upscaling and speech by rules on this machine. Not a model, and everything it makes says so."""

from __future__ import annotations

import asyncio
import hashlib
import io
import random
import shutil
import wave

from omnihub.common.v1.chat_pb2 import ParameterReceipt
from omnihub.common.v1.media_pb2 import ImageInput, MediaOutput, MediaUsage, SpeechInput, UpscaleInput
from omnihub.provider.v1 import media_provider_service_pb2 as pb
from PIL import Image, ImageDraw, UnidentifiedImageError

from services.formats.errors import invalid
from services.providers.domain.failure import Failures, UnsupportedError
from services.providers.http import Upstream
from services.providers.media.adapter import Abilities
from services.providers.settings import ProviderSettings

SPEECH_PROGRAM = "espeak-ng"
SPEECH_LIMIT_S = 60.0
NORMAL_WORDS_PER_MINUTE = 175
LARGEST_SIDE = 4096
MOST_IMAGES = 10
NOTICE = "OmniHub local: procedural, not a model"
# Pillow refuses larger pictures by itself; a bomb is not even opened.
MOST_PIXELS = 64_000_000
_FORMATS = {"": "PNG", "png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}


class LocalMediaAdapter:
    """Makes the same thing of the same request. Needs no key and no network."""

    adapter = "local"

    def __init__(self, name: str, settings: ProviderSettings, upstream: Upstream) -> None:
        self._name = name
        kinds = {"image", "upscale"} | ({"speech"} if shutil.which(SPEECH_PROGRAM) else set())
        self.abilities = Abilities(
            kinds=frozenset(kinds), immediate=frozenset(kinds), idempotent=True, synthetic=True
        )

    async def submit(self, attempt: pb.MediaAttempt) -> pb.SubmitMediaResponse:
        """Make it now."""
        given = attempt.input
        receipt: list[ParameterReceipt] = []
        if given.extension_json:
            receipt.append(_dropped("extension_json"))
        match given.WhichOneof("kind"):
            case "image":
                receipt += _unused(given.image, "negative_prompt", "steps", "guidance", "style", "quality")
                progress = await asyncio.to_thread(_images, given.image)
            case "upscale":
                progress = await asyncio.to_thread(_upscaled, given.upscale)
            case "speech":
                receipt += _unused(given.speech, "instructions", "timestamps", "sample_rate")
                progress = await self._speech(given.speech)
            case kind:
                raise UnsupportedError(self._name, f"{self._name} does not make {kind}", "input")
        if attempt.strict and receipt:
            names = ", ".join(entry.name for entry in receipt)
            raise UnsupportedError(self._name, f"{self._name} cannot use {names}", receipt[0].name)
        return pb.SubmitMediaResponse(progress=progress, receipt=receipt)

    async def _speech(self, given: SpeechInput) -> pb.MediaProgress:
        if not given.text:
            raise invalid("input.speech.text", "is empty")
        if given.format not in ("", "wav"):
            raise invalid("input.speech.format", "expected wav")
        if given.speed and not 0.25 <= given.speed <= 4:
            raise invalid("input.speech.speed", "expected a number from 0.25 to 4")
        voice = given.voice or given.language or "en"
        words_per_minute = round(NORMAL_WORDS_PER_MINUTE * (given.speed or 1))
        # The text goes through standard input: it can never be read as an option.
        command = [SPEECH_PROGRAM, "--stdin", "--stdout", "-v", voice, "-s", str(words_per_minute)]
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(SPEECH_LIMIT_S):
                audio, problem = await process.communicate(given.text.encode())
        except TimeoutError:
            raise Failures(self._name, voice).of("PROVIDER_TIMEOUT", "took too long to speak") from None
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode:
            raise invalid(
                "input.speech.voice", f"{voice!r}: {problem.decode(errors='replace').strip()[:200]}"
            )
        rate, seconds = _wave_facts(audio)
        facts = MediaOutput(mime="audio/wav", sample_rate=rate, duration_s=seconds)
        usage = MediaUsage(characters=len(given.text), seconds=seconds)
        return pb.MediaProgress(
            state="succeeded", outputs=[pb.ProviderOutput(data=audio, facts=facts)], usage=usage
        )


def _images(given: ImageInput) -> pb.MediaProgress:
    width, height = given.width or 512, given.height or 512
    if max(width, height) > LARGEST_SIDE:
        raise invalid("input.image", f"expected at most {LARGEST_SIDE} pixels per side")
    count = given.count or 1
    if count > MOST_IMAGES:
        raise invalid("input.image.count", f"expected at most {MOST_IMAGES}")
    kind = _FORMATS.get(given.format)
    if kind is None:
        raise invalid("input.image.format", "expected png, jpeg or webp")
    seed = given.seed if given.HasField("seed") else _seed_of(given.prompt)
    progress = pb.MediaProgress(state="succeeded")
    for index in range(count):
        data = _encoded(_drawn(seed + index, width, height), kind)
        facts = MediaOutput(
            mime=f"image/{kind.lower()}", width=width, height=height, seed=(seed + index) % 2**32
        )
        progress.outputs.append(pb.ProviderOutput(data=data, facts=facts))
    progress.usage.images, progress.usage.megapixels = count, count * width * height / 1e6
    return progress


def _seed_of(prompt: str) -> int:
    return int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=4).digest(), "big")


def _drawn(seed: int, width: int, height: int) -> Image.Image:
    """Return circles in the colours of a seed, with the notice."""
    chance = random.Random(seed)
    picture = Image.new("RGB", (width, height), _colour(chance))
    draw = ImageDraw.Draw(picture)
    for _ in range(24):
        x, y = chance.randrange(width), chance.randrange(height)
        radius = chance.randrange(1, max(2, min(width, height) // 4))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_colour(chance))
    draw.text((4, height - 14), NOTICE, fill=(255, 255, 255), stroke_width=1, stroke_fill=(0, 0, 0))
    return picture


def _colour(chance: random.Random) -> tuple[int, int, int]:
    return chance.randrange(256), chance.randrange(256), chance.randrange(256)


def _encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def _upscaled(given: UpscaleInput) -> pb.MediaProgress:
    factor = given.factor or 2
    if not 1 < factor <= 8:
        raise invalid("input.upscale.factor", "expected a number above 1, at most 8")
    try:
        with Image.open(io.BytesIO(given.file.data)) as picture:
            width, height = round(picture.width * factor), round(picture.height * factor)
            if width * height > MOST_PIXELS:
                raise invalid("input.upscale.factor", f"the result would exceed {MOST_PIXELS} pixels")
            kind = picture.format or "PNG"
            larger = picture.resize((width, height), Image.Resampling.LANCZOS)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        raise invalid("input.upscale.file", "is no picture that can be read") from None
    facts = MediaOutput(mime=Image.MIME.get(kind, "image/png"), width=width, height=height)
    output = pb.ProviderOutput(data=_encoded(larger, kind), facts=facts)
    usage = MediaUsage(images=1, megapixels=width * height / 1e6)
    return pb.MediaProgress(state="succeeded", outputs=[output], usage=usage)


def _wave_facts(audio: bytes) -> tuple[int, float]:
    """Return sample rate and seconds; a stream's header may not know its length, so it is counted."""
    with wave.open(io.BytesIO(audio)) as reader:
        rate = reader.getframerate()
        size = reader.getnchannels() * reader.getsampwidth()
    return rate, max(0, len(audio) - 44) / (rate * size)


def _unused(given: ImageInput | SpeechInput, *names: str) -> list[ParameterReceipt]:
    return [_dropped(name) for name in names if getattr(given, name)]


def _dropped(name: str) -> ParameterReceipt:
    return ParameterReceipt(name=name, outcome="dropped", detail="rules have no use for it")
