"""What goes into a generation: files, foreign addresses, consents and cloned voices.

`Inputs` checks and resolves it before anything is held or begun: jobs carry ids of files, never contents.
`Materials` stands before the router: it adds the contents for the provider, and looks at consents again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from omnihub.common.v1.media_pb2 import MediaFile, MediaInput
from omnihub.router.v1 import media_router_service_pb2 as router
from omnihub.router.v1.media_router_service_api import MediaRouterService

from services.common.foreign import ForeignClient
from services.common.outbox import SECOND
from services.common.rpc import Call, RpcError
from services.common.rpc.errors import Violation
from services.workflow.domain.bounds import MOST_PIXELS, check_bounds
from services.workflow.domain.media_types import fits
from services.workflow.files.sniffing import size_of_picture
from services.workflow.files.store import FileStore
from services.workflow.files.uploads import INPUT, Uploads
from services.workflow.remixes import Remixes
from services.workflow.store.consents import Actor, Consents

VOICE = "voice_"
# Fields of the kinds, and what their files must be.
_WANTED = {
    "image": "image",
    "image_edit": "image",
    "upscale": "media",
    "video": "image",
    "transcription": "audio",
    "voice_clone": "audio",
    "training": "any",
}


@dataclass(frozen=True, slots=True)
class Permission:
    """Tells whether somebody's voice or face may be used."""

    consents: Consents
    clock: Callable[[], datetime]

    async def check(self, organisation_id: str, consent_id: str, scope: str = "") -> None:
        """Raise RpcError CONSENT_REQUIRED unless a consent holds now, for a scope."""
        row = await self.consents.find(consent_id) if consent_id else None
        now = round(self.clock().timestamp() * SECOND)
        if row is None or (organisation_id and row.organisation_id != organisation_id):
            named = f"there is no consent {consent_id}" if consent_id else "no consent is named"
            raise RpcError("CONSENT_REQUIRED", named)
        if row.revoked_at:
            raise RpcError("CONSENT_REQUIRED", f"the consent {consent_id} has been revoked")
        if row.expires_at and row.expires_at <= now:
            raise RpcError("CONSENT_REQUIRED", f"the consent {consent_id} has expired")
        if scope and scope not in row.scopes.split(","):
            raise RpcError(
                "CONSENT_REQUIRED", f"the consent {consent_id} is for {row.scopes}, not for a {scope}"
            )

    async def of(self, given: MediaInput, organisation_id: str) -> str:
        """Check the consents that an input needs; return the one it relies on, if any. Raises RpcError."""
        match given.WhichOneof("kind"):
            case "voice_clone":
                await self.check(organisation_id, given.voice_clone.consent_id, "voice")
                return given.voice_clone.consent_id
            case "training" if given.training.consent_id:
                await self.check(organisation_id, given.training.consent_id)
                return given.training.consent_id
            case "speech" if given.speech.voice:
                return await self._of_voice(given.speech.voice, organisation_id)
        return ""

    async def _of_voice(self, name: str, organisation_id: str) -> str:
        if not name.startswith(VOICE):
            cloned = await self.consents.voice_known_as(name)
            if cloned is not None:
                raise _invalid("input.speech.voice", "is a cloned voice: name it by its `voice_...` id")
            return ""
        voice = await self.consents.voice(name)
        if voice is None or (organisation_id and voice.organisation_id != organisation_id):
            raise _invalid("input.speech.voice", f"there is no voice {name}")
        await self.check("", voice.consent_id, "voice")
        return str(voice.consent_id)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Checks and resolves what callers send. Serves as Admission's check."""

    files: FileStore
    uploads: Uploads
    foreign: ForeignClient
    permission: Permission
    remixes: Remixes
    limit: int
    """Bytes of all files of one generation together."""

    async def __call__(self, given: MediaInput, call: Call) -> MediaInput:
        """Return the input with every file kept here, by its id.

        Raises RpcError and JobError INVALID_ARGUMENT, CONSENT_REQUIRED, URL_REFUSED, UNSUPPORTED_MEDIA,
        BODY_TOO_LARGE, NOT_FOUND, PROVIDER_FAILED (an address does not answer).
        """
        kind = given.WhichOneof("kind") or ""
        check_bounds(given)
        await self.remixes.check(given, call)
        consent_id = await self.permission.of(given, call.identity.organisation_id)
        checked = MediaInput()
        checked.CopyFrom(given)
        found = list(media_files(getattr(checked, kind), f"input.{kind}"))
        for path, each in found:
            if each.WhichOneof("source") is None:
                raise _invalid(path, "has no source: send file_id, url or data")
        total = 0
        for path, each in found:
            await self._resolve(path, each, _WANTED.get(kind, "any"), call)
            total += each.size
            if total > self.limit:
                rule = f"with it the files are larger than {self.limit} bytes together"
                raise _at(path, RpcError("BODY_TOO_LARGE", rule))
        if consent_id:
            actor = Actor(call.identity.key_id or call.identity.user_id, call.request_id)
            now = round(self.uploads.clock().timestamp() * SECOND)
            await self.permission.consents.used(consent_id, kind, actor, now)
        return checked

    async def _resolve(self, path: str, each: MediaFile, wanted: str, call: Call) -> None:
        """Put the id of a kept and checked file in the place of what was sent."""
        try:
            match each.WhichOneof("source"):
                case "file_id":
                    row = await self.files.of_organisation(call.identity.organisation_id, each.file_id)
                case "url":
                    data = await self.foreign.download(each.url, self.uploads.limit)
                    row = await self._keep(data, each, call)
                case _:
                    row = await self._keep(each.data, each, call)
            if not fits(row.mime, wanted):
                raise RpcError("UNSUPPORTED_MEDIA", f"is {row.mime}; expected {_NAMES[wanted]}")
            if row.mime.startswith("image/"):
                await self._check_picture(row)
        except RpcError as error:
            raise _at(path, error) from None
        each.file_id, each.mime, each.name = row.id, row.mime, each.name or row.name
        each.size = row.size

    async def _keep(self, data: bytes, each: MediaFile, call: Call) -> Any:
        return await self.uploads.take(call, _one(data), name=each.name, said=each.mime, purpose=INPUT)

    async def _check_picture(self, row: Any) -> None:
        size = size_of_picture(await self.files.read(row))
        if size is not None and size[0] * size[1] > MOST_PIXELS:
            raise RpcError(
                "INVALID_ARGUMENT", f"has {size[0]} x {size[1]} pixels; expected at most {MOST_PIXELS}"
            )


_NAMES = {
    "image": "an image",
    "audio": "a sound, or a video with one",
    "media": "an image or a video",
    "any": "a file of an allowed type",
}


def _at(path: str, error: RpcError) -> RpcError:
    """Return an error that names the field it is about."""
    message = f"{path}: {error.message}"
    return RpcError(
        error.reason,
        message,
        metadata={**error.metadata, "field": path},
        violations=[Violation(path, error.message)],
        retry_after_s=error.retry_after_s,
    )


def _invalid(path: str, rule: str) -> RpcError:
    return RpcError("INVALID_ARGUMENT", f"{path}: {rule}", violations=[Violation(path, rule)])


async def _one(data: bytes) -> AsyncIterator[bytes]:
    yield data


def media_files(message: Message, path: str) -> Iterator[tuple[str, MediaFile]]:
    """Yield the files in a message, each with its path."""
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.full_name != MediaFile.DESCRIPTOR.full_name:
            continue
        if isinstance(value, MediaFile):
            yield f"{path}.{field.name}", value
        else:
            yield from ((f"{path}.{field.name}[{index}]", each) for index, each in enumerate(value))


def _only_at(provider: str, what: str, plan: router.PlanMediaResponse) -> router.PlanMediaResponse:
    """Return a plan with the targets of one provider. Raises RpcError when there are none."""
    able = [target for target in plan.targets if target.provider == provider]
    if not able:
        raise RpcError("NO_CANDIDATE", f"{what} is at {provider}: name a model of {provider}")
    narrowed = router.PlanMediaResponse()
    narrowed.CopyFrom(plan)
    del narrowed.targets[:]
    narrowed.targets.extend(able)
    return narrowed


class Materials:
    """A media router that takes ids of files, of cloned voices and of videos."""

    DESCRIPTOR: ClassVar[ServiceDescriptor] = MediaRouterService.DESCRIPTOR

    def __init__(
        self, inner: MediaRouterService, files: FileStore, permission: Permission, remixes: Remixes
    ) -> None:
        self._inner = inner
        self._files = files
        self._permission = permission
        self._remixes = remixes

    async def plan_media(self, request: router.PlanMediaRequest, call: Call) -> router.PlanMediaResponse:
        """Plan; a cloned voice, and a video to be changed, are only at the provider that made them."""
        plan = await self._inner.plan_media(request, call)
        name = request.input.speech.voice
        voice = await self._permission.consents.voice(name) if name.startswith(VOICE) else None
        if voice is not None:
            return _only_at(voice.provider, f"the voice {name}", plan)
        origin = await self._remixes.origin(request.input)
        if origin is not None:
            return _only_at(origin.provider, f"the video of {origin.job_id}", plan)
        return plan

    async def submit_media(
        self, request: router.SubmitMediaRequest, call: Call
    ) -> router.SubmitMediaResponse:
        """Begin an attempt with the contents of its files. Refused when a consent has been revoked since."""
        complete = router.SubmitMediaRequest()
        complete.CopyFrom(request)
        given = complete.attempt.input
        await self._permission.of(given, "")
        for path, each in media_files(getattr(given, given.WhichOneof("kind") or "image"), "input"):
            if each.file_id:
                row = await self._files.find(each.file_id)
                if row is None:
                    raise RpcError("NOT_FOUND", f"{path}: the file {each.file_id} has been removed")
                each.data = await self._files.read(row)
        if given.speech.voice.startswith(VOICE):
            voice = await self._permission.consents.voice(given.speech.voice)
            if voice.provider != complete.attempt.provider:
                raise _invalid("input.speech.voice", f"is a voice of {voice.provider}")
            given.speech.voice = voice.provider_voice
        origin = await self._remixes.origin(given)
        if origin is not None:
            given.video.remix_of_job_id = origin.provider_job_id
        return await self._inner.submit_media(complete, call)

    async def poll_media(self, request: router.PollMediaRequest, call: Call) -> router.PollMediaResponse:
        """Pass it on."""
        return await self._inner.poll_media(request, call)

    async def cancel_media(
        self, request: router.CancelMediaRequest, call: Call
    ) -> router.CancelMediaResponse:
        """Pass it on."""
        return await self._inner.cancel_media(request, call)

    async def find_media(self, request: router.FindMediaRequest, call: Call) -> router.FindMediaResponse:
        """Pass it on."""
        return await self._inner.find_media(request, call)

    async def read_webhook(
        self, request: router.ReadWebhookRequest, call: Call
    ) -> router.ReadWebhookResponse:
        """Pass it on."""
        return await self._inner.read_webhook(request, call)

    def fetch_output(
        self, request: router.FetchOutputRequest, call: Call
    ) -> AsyncIterator[router.FetchOutputResponse]:
        """Pass it on."""
        return self._inner.fetch_output(request, call)

    def stream_speech(
        self, request: router.StreamSpeechRequest, call: Call
    ) -> AsyncIterator[router.StreamSpeechResponse]:
        """Pass it on."""
        return self._inner.stream_speech(request, call)

    async def delete_voice(
        self, request: router.DeleteVoiceRequest, call: Call
    ) -> router.DeleteVoiceResponse:
        """Pass it on."""
        return await self._inner.delete_voice(request, call)

    async def list_voices(self, request: router.ListVoicesRequest, call: Call) -> router.ListVoicesResponse:
        """Pass it on."""
        return await self._inner.list_voices(request, call)
