"""The adapter: which part of the API makes what."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from omnihub.provider.v1 import media_provider_service_pb2 as pb

from services.providers.adapters.openai import OpenAIAdapter
from services.providers.domain.classification import ErrorTable
from services.providers.domain.failure import ProviderError, UnsupportedError
from services.providers.http import Upstream
from services.providers.media.adapter import Abilities
from services.providers.media.http_media import ContentAdapter, Sent, document, form, pieces
from services.providers.media.openai import images, speech, transcription, video
from services.providers.settings import ProviderSettings

_ABILITIES = Abilities(
    kinds=frozenset({"image", "image_edit", "speech", "transcription", "video"}),
    immediate=frozenset({"image", "image_edit", "speech", "transcription"}),
    streams_speech=True,
    models={
        "image": ("gpt-image-*", "chatgpt-image-*", "dall-e-*"),
        "image_edit": ("gpt-image-*", "chatgpt-image-*", "dall-e-2"),
        "speech": ("tts-*", "*-tts", "*-tts-*"),
        "transcription": ("whisper-*", "*-transcribe", "*-transcribe-*"),
        "video": ("sora-*",),
    },
)
_ERRORS = ErrorTable(
    codes={
        **OpenAIAdapter.errors.codes,
        "moderation_blocked": "CONTENT_FILTERED",
        "image_generation_user_error": "PROVIDER_REJECTED",
        "billing_limit_user_error": "PROVIDER_BILLING",
    },
    phrases=(*OpenAIAdapter.errors.phrases, ("safety system", "CONTENT_FILTERED")),
)


class OpenAIMediaAdapter(ContentAdapter):
    """Everything but videos is made within the call. Nothing can be asked for twice, or found again."""

    adapter = "openai"
    abilities = _ABILITIES
    errors = _ERRORS

    def __init__(self, name: str, settings: ProviderSettings, upstream: Upstream) -> None:
        super().__init__(name, settings, upstream)

    async def submit(self, attempt: pb.MediaAttempt) -> pb.SubmitMediaResponse:
        """Make one thing, or begin a video."""
        match attempt.input.WhichOneof("kind"):
            case "image":
                written = images.write(attempt)
                return await self._images(attempt, "/images/generations", document(written.values), written)
            case "image_edit":
                written = images.write_edit(attempt)
                sent = await form(written.values, images.files_of(attempt))
                return await self._images(attempt, "/images/edits", sent, written)
            case "speech":
                return await self._speech(attempt)
            case "transcription":
                return await self._transcription(attempt)
            case "video":
                return await self._video(attempt)
            case kind:
                raise UnsupportedError(self.name, f"{self.name} does not make {kind}", "input")

    async def _images(
        self, attempt: pb.MediaAttempt, path: str, sent: Sent, written: images.Written
    ) -> pb.SubmitMediaResponse:
        answer = await self.paid(attempt, self.url(path), sent)
        progress = images.read(answer, attempt, self.failures(attempt.model))
        return pb.SubmitMediaResponse(
            progress=progress, receipt=written.receipt, provider_request_id=answer.request_id
        )

    async def _speech(self, attempt: pb.MediaAttempt) -> pb.SubmitMediaResponse:
        written = speech.write(attempt)
        answer = await self.paid(attempt, self.url("/audio/speech"), document(written.values))
        progress = speech.read(answer, attempt.input.speech, self.failures(attempt.model))
        return pb.SubmitMediaResponse(
            progress=progress, receipt=written.receipt, provider_request_id=answer.request_id
        )

    async def stream_speech(self, attempt: pb.MediaAttempt) -> AsyncGenerator[pb.StreamSpeechResponse, None]:
        """Yield the sound as it comes."""
        written = speech.write(attempt)
        given, failures = attempt.input.speech, self.failures(attempt.model)
        url, limits = self.url("/audio/speech"), self.limits(attempt)
        size = 0
        async with self.opened("POST", url, failures, limits, document(written.values)) as exchange:
            speech.check_type(exchange.content_type, failures)
            yield speech.started(given, written)
            async for audio in pieces(exchange):
                size += len(audio)
                yield pb.StreamSpeechResponse(audio=audio)
        yield speech.ended(given, size, failures)

    async def _transcription(self, attempt: pb.MediaAttempt) -> pb.SubmitMediaResponse:
        written = transcription.write(attempt)
        sent = await form(written.values, [transcription.file(attempt)])
        answer = await self.paid(attempt, self.url("/audio/transcriptions"), sent)
        progress = transcription.read(answer, attempt, self.failures(attempt.model))
        return pb.SubmitMediaResponse(
            progress=progress, receipt=written.receipt, provider_request_id=answer.request_id
        )

    async def _video(self, attempt: pb.MediaAttempt) -> pb.SubmitMediaResponse:
        written = video.write(attempt)
        failures = self.failures(attempt.model)
        origin = attempt.input.video.remix_of_job_id
        if origin:
            path = f"/videos/{self.check_id(origin, attempt.model)}/remix"
            answer = await self.paid(attempt, self.url(path), document(written.values))
        else:
            sent = await form(written.values, video.files_of(attempt))
            answer = await self.paid(attempt, self.url("/videos"), sent)
        made = answer.read(video.Video, failures)
        if not made.id:
            raise failures.of("PROVIDER_PROTOCOL", "began a video without an id", http_status=200)
        return pb.SubmitMediaResponse(
            provider_job_id=made.id,
            progress=video.progress_of(made, self),
            receipt=written.receipt,
            provider_request_id=answer.request_id,
        )

    async def poll(self, request: pb.PollMediaRequest) -> pb.MediaProgress:
        """Return how far a video is."""
        failures = self.failures(request.model)
        url = self.url(f"/videos/{self.check_id(request.provider_job_id, request.model)}")
        try:
            answer = await self.content("GET", url, failures, self.question())
        except ProviderError as error:
            if error.metadata.get("http_status") == "404":
                raise self.forgotten(request.model) from None
            raise
        return video.progress_of(answer.read(video.Video, failures), self)

    async def fetch(self, reference: str) -> AsyncGenerator[bytes, None]:
        """Yield a video."""
        failures = self.failures("")
        url = self.url(f"/videos/{self.check_id(reference, '')}/content")
        async with self.opened("GET", url, failures, self.limits(pb.MediaAttempt())) as exchange:
            if exchange.content_type in ("text/html", "application/json"):
                message = f"answered with {exchange.content_type} instead of a video"
                raise failures.of("PROVIDER_PROTOCOL", message, http_status=200)
            async for data in pieces(exchange):
                yield data
