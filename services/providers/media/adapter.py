"""What every adapter of media is."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from omnihub.provider.v1 import media_provider_service_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What a provider can do, and how."""

    kinds: frozenset[str]
    """Of the fields of MediaInput."""
    immediate: frozenset[str] = frozenset()
    """Kinds that are made within the call; the others are polled."""
    cancels: bool = False
    webhooks: bool = False
    idempotent: bool = False
    finds: bool = False
    streams_speech: bool = False
    concurrency: int = 0
    """Jobs at the same time; 0 for no limit."""
    synthetic: bool = False
    models: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By kind, patterns of the models that make it, such as `gpt-image-*`; none: any model may."""


class MediaAdapter(Protocol):
    """One configured provider. Methods raise errors whose `reason` names a row of the error table."""

    adapter: str
    abilities: Abilities

    async def submit(self, attempt: pb.MediaAttempt) -> pb.SubmitMediaResponse:
        """Begin one generation, or make it at once."""
        ...


@runtime_checkable
class Polled(Protocol):
    """An adapter whose generations take their time."""

    async def poll(self, request: pb.PollMediaRequest) -> pb.MediaProgress:
        """Return how far a generation is."""
        ...


@runtime_checkable
class Cancels(Protocol):
    """An adapter whose generations can be stopped."""

    async def cancel(self, request: pb.CancelMediaRequest) -> str:
        """Ask the provider to stop; return requested, already_ended or unknown."""
        ...


@runtime_checkable
class Finds(Protocol):
    """An adapter whose provider lists what it runs."""

    async def find(self, request: pb.FindMediaRequest) -> str:
        """Return the provider's id of what an effect key began; empty when there is nothing."""
        ...


@runtime_checkable
class Notifies(Protocol):
    """An adapter whose provider sends signed notifications."""

    async def read_webhook(self, headers: Mapping[str, str], body: bytes) -> pb.ReadWebhookResponse:
        """Return what a notification says. Raises INVALID_CREDENTIAL unless it is genuine and fresh."""
        ...


@runtime_checkable
class Fetches(Protocol):
    """An adapter whose outputs only its credential opens."""

    def fetch(self, reference: str) -> AsyncGenerator[bytes, None]:
        """Yield an output in pieces."""
        ...


@runtime_checkable
class Speaks(Protocol):
    """An adapter that speaks while it makes."""

    def stream_speech(self, attempt: pb.MediaAttempt) -> AsyncGenerator[pb.StreamSpeechResponse, None]:
        """Yield the audio as it comes; the last message is `end`."""
        ...


@runtime_checkable
class HasVoices(Protocol):
    """An adapter with voices to choose from."""

    async def voices(self) -> list[pb.Voice]:
        """Return the voices."""
        ...

    async def delete_voice(self, voice: str) -> None:
        """Forget a cloned voice; nothing happens when there is none. Raises UnsupportedError for others."""
        ...
