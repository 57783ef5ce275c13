"""Serves ConsentService: records, shows and takes back what people have agreed to."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from omnihub.common.v1.media_pb2 import MediaInput, SpeechInput
from omnihub.workflow.v1 import consent_service_pb2 as pb

from services.common.ids import new_id
from services.common.outbox import SECOND
from services.common.page_token import encode_page_token
from services.common.rpc import Call, RpcError
from services.common.rpc.errors import Violation
from services.workflow.files.server import read_page_token
from services.workflow.files.store import FileStore
from services.workflow.files.uploads import EVIDENCE
from services.workflow.materials import Permission
from services.workflow.store.consents import Actor, Consents

DEFAULT_PAGE = 100
# The clocks of callers may be ahead.
AHEAD_S = 300

Cancel = Callable[[str, int], Awaitable[Any]]
"""Asks a job to stop."""

_logger = logging.getLogger(__name__)


class ConsentServer:
    """See the contract in omnihub/workflow/v1/consent_service.proto."""

    def __init__(
        self,
        consents: Consents,
        files: FileStore,
        permission: Permission,
        cancel: Cancel,
        wake: Callable[[], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._consents = consents
        self._files = files
        self._permission = permission
        self._cancel = cancel
        self._wake = wake
        self._clock = clock

    def _now(self) -> int:
        return round(self._clock().timestamp() * SECOND)

    async def create_consent(self, request: pb.CreateConsentRequest, call: Call) -> pb.CreateConsentResponse:
        """Record a consent."""
        now = self._now()
        given_at = request.given_at.ToMicroseconds()
        expires_at = request.expires_at.ToMicroseconds() if request.HasField("expires_at") else 0
        if given_at > now + AHEAD_S * SECOND:
            raise _invalid("given_at", "is in the future: a consent is recorded after it was given")
        if expires_at and expires_at <= max(now, given_at):
            raise _invalid("expires_at", "is over already")
        organisation_id = call.identity.organisation_id
        evidence = await self._files.of_organisation(organisation_id, request.evidence_file_id)
        row = await self._consents.create(
            {
                "id": new_id("consent"),
                "organisation_id": organisation_id,
                "subject": request.subject,
                "scopes": ",".join(sorted(set(request.scopes))),
                "evidence_file_id": evidence.id,
                "given_at": given_at,
                "recorded_at": now,
                "revoked_at": 0,
                "expires_at": expires_at,
                "idempotency_key": request.idempotency_key or call.idempotency_key,
            },
            actor_of(call),
        )
        await self._files.keep_for_ever(evidence.id, EVIDENCE)
        return pb.CreateConsentResponse(consent=_view(row))

    async def get_consent(self, request: pb.GetConsentRequest, call: Call) -> pb.GetConsentResponse:
        """Return a consent."""
        return pb.GetConsentResponse(consent=await self._whole(await self._of(call, request.consent_id)))

    async def list_consents(self, request: pb.ListConsentsRequest, call: Call) -> pb.ListConsentsResponse:
        """Return a page of consents."""
        size = request.page_size or DEFAULT_PAGE
        before = read_page_token(request.page_token)
        rows = await self._consents.page(call.identity.organisation_id, size + 1, before)
        shown = rows[:size]
        response = pb.ListConsentsResponse(consents=[_view(row) for row in shown])
        if len(rows) > size:
            response.next_page_token = encode_page_token(shown[-1].recorded_at, shown[-1].id)
        return response

    async def revoke_consent(self, request: pb.RevokeConsentRequest, call: Call) -> pb.RevokeConsentResponse:
        """Take a consent back, and stop what uses it."""
        await self._of(call, request.consent_id)
        now = self._now()
        row = await self._consents.revoke(request.consent_id, request.reason, actor_of(call), now)
        # Whoever asks again after a crash cancels what was left.
        jobs = await self._consents.concerned_jobs(row)
        for job_id in jobs:
            await self._cancel(job_id, now)
        self._wake()
        _logger.info("consent_revoked %s jobs=%d", row.id, len(jobs))
        return pb.RevokeConsentResponse(consent=await self._whole(row))

    async def use_voice(self, request: pb.UseVoiceRequest, call: Call) -> pb.UseVoiceResponse:
        """Say how a voice is called where it is."""
        given = MediaInput(speech=SpeechInput(voice=request.voice))
        consent_id = await self._permission.of(given, call.identity.organisation_id)
        if not consent_id:
            return pb.UseVoiceResponse(provider_voice=request.voice)
        voice = await self._consents.voice(request.voice)
        await self._consents.used(consent_id, "speech", actor_of(call), self._now())
        return pb.UseVoiceResponse(provider_voice=voice.provider_voice, provider=voice.provider)

    async def _whole(self, row: Any) -> pb.Consent:
        message = _view(row)
        for voice in await self._consents.voices_of(row.id):
            message.voices.add(
                voice_id=voice.id,
                provider=voice.provider,
                state=voice.state,
                problem=voice.problem,
                attempts=voice.attempts,
            )
        return message

    async def _of(self, call: Call, consent_id: str) -> Any:
        row = await self._consents.find(consent_id)
        if row is None or row.organisation_id != call.identity.organisation_id:
            raise RpcError("NOT_FOUND", f"there is no consent {consent_id}")
        return row


def actor_of(call: Call) -> Actor:
    """Return who makes a call."""
    return Actor(call.identity.key_id or call.identity.user_id, call.request_id)


def _invalid(field: str, rule: str) -> RpcError:
    return RpcError("INVALID_ARGUMENT", f"{field}: {rule}", violations=[Violation(field, rule)])


def _view(row: Any) -> pb.Consent:
    message = pb.Consent(
        consent_id=row.id,
        subject=row.subject,
        scopes=row.scopes.split(","),
        evidence_file_id=row.evidence_file_id,
    )
    for name in ("given_at", "recorded_at", "revoked_at", "expires_at"):
        if at := getattr(row, name):
            getattr(message, name).FromMicroseconds(at)
    return message
