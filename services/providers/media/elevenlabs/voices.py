"""Voices: cloned from samples, listed, forgotten."""

from __future__ import annotations

import msgspec
from omnihub.common.v1.media_pb2 import MediaUsage
from omnihub.provider.v1 import media_provider_service_pb2 as pb

from services.formats.errors import invalid
from services.providers.domain.failure import Failures
from services.providers.media import parameters
from services.providers.media.http_media import Content, File, file_of
from services.providers.media.parameters import Written

PAGE_SIZE = 100
MOST_PAGES = 50


class _Language(msgspec.Struct):
    language: str | None = None
    locale: str | None = None


class _Voice(msgspec.Struct):
    voice_id: str
    name: str | None = None
    preview_url: str | None = None
    verified_languages: list[_Language] | None = None


class Page(msgspec.Struct):
    """A part of the list of voices."""

    voices: list[_Voice]
    has_more: bool = False
    next_page_token: str | None = None


class _Cloned(msgspec.Struct):
    voice_id: str
    requires_verification: bool = False


def voice_of(row: _Voice) -> pb.Voice:
    """Return a voice as callers choose it."""
    languages = [language.locale or language.language or "" for language in row.verified_languages or []]
    return pb.Voice(
        voice=row.voice_id,
        display_name=row.name or row.voice_id,
        languages=sorted({language for language in languages if language}),
        preview_url=row.preview_url or "",
    )


def write_clone(attempt: pb.MediaAttempt) -> Written:
    """Return the fields of a request to clone a voice. Consent has been checked by who has the records."""
    given = attempt.input.voice_clone
    if not given.name:
        raise invalid("input.voice_clone.name", "is empty")
    if not given.samples:
        raise invalid("input.voice_clone.samples", "give at least one recording of the voice")
    return parameters.write(
        attempt,
        {
            "name": "name",
            "description": "description",
            "samples": lambda _: {},
            "consent_id": lambda _: {},
        },
    )


def samples_of(attempt: pb.MediaAttempt) -> list[File]:
    """Return the recordings."""
    return [
        file_of(
            sample,
            attempt.provider,
            "files",
            f"input.voice_clone.samples[{index}]",
            f"sample{index}.mp3",
        )
        for index, sample in enumerate(attempt.input.voice_clone.samples)
    ]


def read_clone(answer: Content, failures: Failures) -> pb.MediaProgress:
    """Return the new voice. Raises PROVIDER_PROTOCOL."""
    cloned = answer.read(_Cloned, failures)
    output = pb.ProviderOutput(resource=cloned.voice_id)
    output.facts.details_json = msgspec.json.encode(
        {"requires_verification": cloned.requires_verification}
    ).decode()
    return pb.MediaProgress(state="succeeded", outputs=[output], usage=MediaUsage())
