"""Bounds of what may be asked for: what no provider could make is refused before anything is spent."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from google.protobuf.message import Message
from omnihub.common.v1.media_pb2 import MediaInput

from services.workflow.domain.errors import JobError, Violation

LEAST_SIDE, LARGEST_SIDE = 16, 16_384
MOST_PIXELS = 128_000_000
MOST_IMAGES = 20
MOST_FILES = 16
LONGEST_PROMPT = 100_000
LONGEST_SPEECH = 200_000
LONGEST_VIDEO_S = 600.0
_RATIO = re.compile(r"[1-9][0-9]{0,3}:[1-9][0-9]{0,3}\Z")

Problem = tuple[str, str]


class BadInputError(JobError):
    """Fields are out of bounds."""

    reason = "INVALID_ARGUMENT"

    def __init__(self, violations: list[Violation]) -> None:
        first = violations[0]
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        super().__init__(f"{first.field}: {first.description}{more}", violations=violations)


def check_bounds(given: MediaInput) -> None:
    """Raise BadInputError naming every field that is out of bounds."""
    kind = given.WhichOneof("kind") or ""
    problems = [
        Violation(f"input.{kind}.{field}", text) for field, text in _CHECKS[kind](getattr(given, kind))
    ]
    if given.extension_json and not _is_object(given.extension_json):
        problems.append(Violation("input.extension_json", "expected a JSON object"))
    if problems:
        raise BadInputError(problems)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _text(message: Message, field: str, longest: int, needed: bool = True) -> Iterator[Problem]:
    text = getattr(message, field)
    if needed and not text.strip():
        yield field, "is empty"
    if len(text) > longest:
        yield field, f"has {len(text)} characters; expected at most {longest}"


def _within(message: Message, field: str, least: float, most: float, zero: bool = True) -> Iterator[Problem]:
    """Check a number. Zero means that nothing is said, unless the field can say so by itself."""
    value = getattr(message, field)
    if zero and not value:
        return
    # Also false for what is not a number.
    if not least <= value <= most:
        yield field, f"is {value:g}; expected {least:g} to {most:g}"


def _optional(message: Message, field: str, least: float, most: float) -> Iterator[Problem]:
    if message.HasField(field):
        yield from _within(message, field, least, most, zero=False)


def _one_of(message: Message, field: str, known: tuple[str, ...]) -> Iterator[Problem]:
    if getattr(message, field) not in ("", *known):
        yield field, f"expected {', '.join(known)}"


def _many(message: Message, field: str, most: int, least: int = 0) -> Iterator[Problem]:
    count = len(getattr(message, field))
    if not least <= count <= most:
        yield field, f"has {count}; expected {least} to {most}"


def _sides(message: Any) -> Iterator[Problem]:
    yield from _within(message, "width", LEAST_SIDE, LARGEST_SIDE)
    yield from _within(message, "height", LEAST_SIDE, LARGEST_SIDE)
    if bool(message.width) != bool(message.height):
        yield ("height" if message.width else "width"), "is missing: send both sides, or neither"
    if message.width * message.height > MOST_PIXELS:
        yield "width", f"with the height more than {MOST_PIXELS} pixels; send smaller sides"


def _ratio(message: Any) -> Iterator[Problem]:
    if message.aspect_ratio and not _RATIO.match(message.aspect_ratio):
        yield "aspect_ratio", "expected two whole numbers such as 16:9"
    if message.aspect_ratio and message.width:
        yield "aspect_ratio", "contradicts width and height: send one or the other"


_PICTURES = ("png", "jpeg", "webp")


def _image(given: Any) -> Iterator[Problem]:
    yield from _text(given, "prompt", LONGEST_PROMPT)
    yield from _text(given, "negative_prompt", LONGEST_PROMPT, needed=False)
    yield from _within(given, "count", 1, MOST_IMAGES)
    yield from _sides(given)
    yield from _ratio(given)
    yield from _within(given, "steps", 1, 500)
    yield from _optional(given, "guidance", 0, 100)
    yield from _optional(given, "strength", 0, 1)
    yield from _one_of(given, "format", _PICTURES)
    yield from _many(given, "loras", 10)
    for index, lora in enumerate(given.loras):
        for field, text in (*_text(lora, "name", 1000), *_within(lora, "weight", -10, 10)):
            yield f"loras[{index}].{field}", text


def _image_edit(given: Any) -> Iterator[Problem]:
    yield from _text(given, "prompt", LONGEST_PROMPT)
    yield from _many(given, "images", MOST_FILES, least=1)
    yield from _within(given, "count", 1, MOST_IMAGES)
    yield from _sides(given)
    yield from _optional(given, "strength", 0, 1)
    yield from _one_of(given, "format", _PICTURES)


def _upscale(given: Any) -> Iterator[Problem]:
    if not given.HasField("file"):
        yield "file", "is missing: name the image or the video"
    yield from _within(given, "factor", 1, 16)
    yield from _text(given, "prompt", LONGEST_PROMPT, needed=False)


def _video(given: Any) -> Iterator[Problem]:
    needed = not (given.HasField("first_frame") or given.remix_of_job_id)
    yield from _text(given, "prompt", LONGEST_PROMPT, needed=needed)
    yield from _text(given, "negative_prompt", LONGEST_PROMPT, needed=False)
    yield from _within(given, "duration_s", 0.1, LONGEST_VIDEO_S)
    yield from _within(given, "frames_per_second", 1, 240)
    yield from _sides(given)
    yield from _ratio(given)


def _speech(given: Any) -> Iterator[Problem]:
    yield from _text(given, "text", LONGEST_SPEECH)
    yield from _text(given, "voice", 512, needed=False)
    yield from _text(given, "instructions", LONGEST_PROMPT, needed=False)
    yield from _one_of(given, "format", ("mp3", "wav", "opus", "aac", "flac", "pcm"))
    yield from _within(given, "sample_rate", 8000, 192_000)
    yield from _within(given, "speed", 0.25, 4)


def _transcription(given: Any) -> Iterator[Problem]:
    if not given.HasField("audio"):
        yield "audio", "is missing: name the recording"
    yield from _text(given, "prompt", LONGEST_PROMPT, needed=False)
    yield from _one_of(given, "format", ("json", "text", "srt", "verbose_json", "vtt"))
    yield from _optional(given, "temperature", 0, 2)
    if not set(given.timestamps) <= {"word", "segment"}:
        yield "timestamps", "expected word, segment or both"


def _voice_clone(given: Any) -> Iterator[Problem]:
    yield from _text(given, "name", 256)
    yield from _text(given, "description", 1000, needed=False)
    yield from _many(given, "samples", 25, least=1)


def _training(given: Any) -> Iterator[Problem]:
    yield from _text(given, "name", 256)
    yield from _many(given, "dataset", 1000, least=1)
    if given.options_json and not _is_object(given.options_json):
        yield "options_json", "expected a JSON object"


def _embedding_batch(given: Any) -> Iterator[Problem]:
    yield from _many(given, "inputs", 50_000, least=1)
    yield from _within(given, "dimensions", 1, 16_384)
    if not all(given.inputs):
        yield "inputs", "one of them is empty"


_CHECKS: Mapping[str, Callable[[Any], Iterator[Problem]]] = {
    "image": _image,
    "image_edit": _image_edit,
    "upscale": _upscale,
    "video": _video,
    "speech": _speech,
    "transcription": _transcription,
    "voice_clone": _voice_clone,
    "training": _training,
    "embedding_batch": _embedding_batch,
}
