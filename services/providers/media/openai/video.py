"""Videos: begun, polled, and fetched with the key."""

from __future__ import annotations

import msgspec
from omnihub.common.v1.media_pb2 import MediaOutput, MediaUsage
from omnihub.provider.v1 import media_provider_service_pb2 as pb

from services.formats.errors import invalid
from services.providers.media import parameters
from services.providers.media.http_adapter import HttpMediaAdapter, number, whole
from services.providers.media.http_media import File, file_of
from services.providers.media.parameters import Word, Written

DEFAULT_S = 4.0
_STATES = {"queued": "queued", "in_progress": "running"}


class _Error(msgspec.Struct):
    code: str | None = None
    message: str | None = None


class Video(msgspec.Struct):
    """A video as the provider tells of it."""

    id: str = ""
    status: str = ""
    progress: float | None = None
    seconds: str | float | None = None
    size: str | None = None
    model: str | None = None
    error: _Error | None = None


def write(attempt: pb.MediaAttempt) -> Written:
    """Return the fields of a request; its file is that of `files_of`."""
    given = attempt.input.video
    words: dict[str, Word] = {"prompt": "prompt"}
    if given.remix_of_job_id:
        words["remix_of_job_id"] = lambda _: {}
        return parameters.write(attempt, words, extends=False)
    if bool(given.width) != bool(given.height):
        raise invalid("input.video.width", "give both width and height, or neither")
    if given.duration_s != int(given.duration_s):
        raise invalid("input.video.duration_s", "expected whole seconds, such as 4, 8 or 12")
    size = {"size": f"{given.width}x{given.height}"}
    words |= {
        "duration_s": lambda seconds: {"seconds": str(int(seconds))},
        "width": lambda _: size,
        "height": lambda _: size,
        "first_frame": lambda _: {},
    }
    written = parameters.write(attempt, words)
    written.values["model"] = attempt.model
    return written


def files_of(attempt: pb.MediaAttempt) -> list[File]:
    """Return the picture that a video begins with."""
    given = attempt.input.video
    if not given.HasField("first_frame"):
        return []
    path = "input.video.first_frame"
    return [file_of(given.first_frame, attempt.provider, "input_reference", path, "frame.png")]


def progress_of(video: Video, adapter: HttpMediaAdapter) -> pb.MediaProgress:
    """Return how far a video is."""
    if video.status == "failed":
        error = video.error or _Error()
        message = error.message or "it could not be made"
        return adapter.failed(video.model or "", message, error.code or "", unbilled=True)
    if video.status != "completed":
        progress = pb.MediaProgress(state=_STATES.get(video.status, "running"))
        if video.progress is not None:
            progress.fraction = min(1.0, max(0.0, video.progress / 100))
        return progress
    seconds = _seconds(video.seconds)
    width, _, height = (video.size or "").partition("x")
    facts = MediaOutput(mime="video/mp4", duration_s=seconds)
    if width.isdecimal() and height.isdecimal():
        facts.width, facts.height = whole(int(width)), whole(int(height))
    return pb.MediaProgress(
        state="succeeded",
        outputs=[pb.ProviderOutput(fetch_reference=video.id, facts=facts)],
        usage=MediaUsage(seconds=seconds or DEFAULT_S, estimated=not seconds),
    )


def _seconds(told: str | float | None) -> float:
    try:
        return number(float(told or 0))
    except ValueError:
        return 0.0
