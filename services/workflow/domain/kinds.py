"""What kinds of generation there are, and how long each may take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from omnihub.common.v1.media_pb2 import MediaInput

from services.workflow.domain.errors import InvalidInputError

INTERACTIVE, BATCH = "interactive", "batch"
PRIORITIES = (INTERACTIVE, BATCH)
# Many jobs as one.
BATCH_KIND = "batch"
# A worker keeps the message until it is done, or only until the provider has accepted.
LATE, SUBMIT = "late", "submit"


@dataclass(frozen=True, slots=True)
class Kind:
    """One modality."""

    name: str
    deadline_s: int
    """How long a job may take when its caller says nothing."""


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("image", 3600),
        Kind("image_edit", 3600),
        Kind("upscale", 3600),
        Kind("video", 6 * 3600),
        Kind("speech", 3600),
        Kind("transcription", 6 * 3600),
        Kind("voice_clone", 3600),
        Kind("training", 72 * 3600),
        Kind("embedding_batch", 24 * 3600),
    )
}


def kind_of(given: MediaInput) -> Kind:
    """Return what is to be made. Raises InvalidInputError."""
    name = given.WhichOneof("kind")
    if name is None:
        raise InvalidInputError("input", f"say what to make: one of {', '.join(KINDS)}")
    return KINDS[name]


def queue_of(immediate: bool, priority: str) -> str:
    """Return the queue of an attempt, without its version."""
    return f"job.{LATE if immediate else SUBMIT}.{priority}"
