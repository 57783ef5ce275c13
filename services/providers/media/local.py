"""Images, upscaling and speech by rules on this machine. Not a model, and everything it makes says so."""

from __future__ import annotations

import asyncio
import hashlib
import io
import random
import shutil
import subprocess
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING

from omnihub.common.v1.media_pb2 import ImageInput, MediaOutput, MediaUsage, SpeechInput, UpscaleInput
from omnihub.provider.v1 import media_provider_service_pb2 as pb
from PIL import UnidentifiedImageError

from services.common.late import late
from services.formats.errors import invalid
from services.providers.domain.failure import Failures, UnsupportedError
from services.providers.http import Upstream
from services.providers.media.adapter import Abilities
from services.providers.media.audio import CutError, wave_facts
from services.providers.media.parameters import Word, write
from services.providers.settings import ProviderSettings

if TYPE_CHECKING:
    from PIL import Image, ImageDraw
else:
    Image = late("PIL.Image")
    ImageDraw = late("PIL.ImageDraw")

MODEL = "default"
SPEECH_PROGRAM = "espeak-ng"
SPEECH_LIMIT_S = 60.0
NORMAL_WORDS_PER_MINUTE = 175
LARGEST_SIDE = 4096
MOST_IMAGES = 10
PIECE = 2**16
# Of a listing: how it is pronounced, language, age and gender, name, file, other languages.
_NAME_COLUMN = 3
NOTICE = "OmniHub local: procedural, not a model"
# Pillow refuses larger pictures by itself; a bomb is not even opened.
MOST_PIXELS = 64_000_000
# What rules have a use for.
_TAKEN = {
    "image": ("prompt", "count", "width", "height", "seed", "format"),
    "upscale": ("file", "factor"),
    "speech": ("text", "voice", "format", "speed", "language"),
}
_FORMATS = {"": "PNG", "png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}


class LocalMediaAdapter:
    """Makes the same thing of the same request. Needs no key and no network."""

    adapter = "local"

    def __init__(self, name: str, settings: ProviderSettings, upstream: Upstream) -> None:
        self._name = name
        kinds = {"image", "upscale"} | ({"speech"} if shutil.which(SPEECH_PROGRAM) else set())
        self.abilities = Abilities(
            kinds=frozenset(kinds),
            immediate=frozenset(kinds),
            idempotent=True,
            streams_speech="speech" in kinds,
            synthetic=True,
            models=dict.fromkeys(kinds, (MODEL,)),
        )

    async def submit(self, attempt: pb.MediaAttempt) -> pb.SubmitMediaResponse:
        """Make it now."""
        given = attempt.input
        kind = given.WhichOneof("kind") or ""
        if kind not in self.abilities.kinds:
            raise UnsupportedError(self._name, f"{self._name} does not make {kind}", "input")
        words: dict[str, Word] = {name: name for name in _TAKEN[kind]}
        receipt = write(attempt, words, extends=False).receipt
        match kind:
            case "image":
                progress = await asyncio.to_thread(_images, given.image)
            case "upscale":
                progress = await asyncio.to_thread(_upscaled, given.upscale)
            case _:
                progress = await self._speech(given.speech)
        return pb.SubmitMediaResponse(progress=progress, receipt=receipt)

    async def stream_speech(self, attempt: pb.MediaAttempt) -> AsyncGenerator[pb.StreamSpeechResponse, None]:
        """Speak, then hand out what was said: rules are quicker than a network."""
        made = await self.submit(attempt)
        output = made.progress.outputs[0]
        facts = output.facts
        yield pb.StreamSpeechResponse(
            start=pb.SpeechStart(mime=facts.mime, sample_rate=facts.sample_rate, receipt=made.receipt)
        )
        for start in range(0, len(output.data), PIECE):
            yield pb.StreamSpeechResponse(audio=output.data[start : start + PIECE])
        yield pb.StreamSpeechResponse(end=pb.SpeechEnd(usage=made.progress.usage))

    async def voices(self) -> list[pb.Voice]:
        """Return the languages that are spoken here; none where nothing speaks."""
        if "speech" not in self.abilities.kinds:
            return []
        listed, problem, code = await _run([SPEECH_PROGRAM, "--voices"], b"")
        if code:
            message = f"its voices cannot be listed: {problem[:200]}"
            raise Failures(self._name, "").of("PROVIDER_FAILED", message)
        rows = [line.split() for line in listed.decode(errors="replace").splitlines()[1:]]
        return [
            pb.Voice(voice=row[1], display_name=row[3].replace("_", " "), languages=[row[1]])
            for row in rows
            if len(row) > _NAME_COLUMN
        ]

    async def delete_voice(self, voice: str) -> None:
        """Refuse: none is cloned here."""
        raise UnsupportedError(self._name, f"{self._name} has no cloned voices", "voice")

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
        try:
            audio, problem, code = await _run(command, given.text.encode())
        except TimeoutError:
            raise Failures(self._name, voice).of("PROVIDER_TIMEOUT", "took too long to speak") from None
        if code:
            raise invalid("input.speech.voice", f"{voice!r}: {problem[:200]}")
        try:
            rate, seconds = wave_facts(audio) or (0, 0.0)
        except CutError:
            rate = 0
        if not rate:
            raise Failures(self._name, voice).of("PROVIDER_PROTOCOL", "the speech program wrote no sound")
        facts = MediaOutput(mime="audio/wav", sample_rate=rate, duration_s=seconds)
        usage = MediaUsage(characters=len(given.text), seconds=seconds)
        return pb.MediaProgress(
            state="succeeded", outputs=[pb.ProviderOutput(data=audio, facts=facts)], usage=usage
        )


async def _run(command: Sequence[str], given: bytes) -> tuple[bytes, str, int]:
    """Run a program: return what it wrote, what it complained of, its exit code. Raises TimeoutError."""
    try:
        # In a thread: how asyncio watches children depends on which loops have run in this process before.
        done = await asyncio.to_thread(
            subprocess.run, command, input=given, capture_output=True, timeout=SPEECH_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    return done.stdout, done.stderr.decode(errors="replace").strip(), done.returncode


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
