"""What comes in beside jobs: notifications of providers, and dead letters to be looked at and sent again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

from omnihub.provider.v1 import media_provider_service_pb2 as provider
from omnihub.router.v1 import media_router_service_pb2 as router
from omnihub.router.v1.media_router_service_api import MediaRouterService
from omnihub.workflow.v1 import job_service_pb2 as pb

from services.common.ids import new_id
from services.common.rpc import Call
from services.workflow.admission import RACERS, Admission, most_of
from services.workflow.domain.routes import routes_of
from services.workflow.domain.states import FINAL
from services.workflow.store.jobs import NewJob
from services.workflow.store.letters import Letters
from services.workflow.store.notices import Notices
from services.workflow.store.records import SECOND, Owner

LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Desk:
    """Takes in what is not asked by a job's owner."""

    admission: Admission
    notices: Notices
    graveyard: Letters
    router: MediaRouterService
    clock: Callable[[], datetime]

    async def receive(self, request: pb.ReceiveWebhookRequest, call: Call) -> str:
        """Note a provider's notification once, and let a worker take it in.

        Returns the job it is about, empty when it is not known here: what was asked for a moment ago may not
        be noted yet, and is found by polling. Raises RpcError for what is not the provider's.
        """
        asked = provider.ReadWebhookRequest(
            provider=request.provider,
            headers={name.lower(): value for name, value in request.headers.items()},
            body=request.body,
        )
        answer = await self.router.read_webhook(
            router.ReadWebhookRequest(request=asked), call.within(LIMIT_S)
        )
        told = answer.response
        if not told.provider_job_id:
            return ""
        for attempt, job in await self.notices.by_provider_job(told.provider_job_id):
            if attempt.provider == request.provider:
                # Without an id of its own, one notification of each state is one event.
                event_id = told.event_id or f"{told.provider_job_id}.{told.progress.state}"
                content = told.progress.SerializeToString()
                await self.notices.note_notice(request.provider, event_id, attempt.id, content, self._now())
                return str(job.id)
        return ""

    async def letters(self, limit: int, before: tuple[int, str] | None) -> Sequence[Any]:
        """Return dead letters, the newest first."""
        return await self.graveyard.page(limit, before)

    async def redrive(self, dead_letter_id: str) -> str:
        """Send a dead letter again and return the job that follows.

        A job that still runs gets another message. One that has ended stays ended: its owner gets a new job
        that asks for the same, once, and is paid as any other. Raises DeadLetterNotFoundError, RpcError.
        """
        letter, attempt, job = await self.graveyard.find(dead_letter_id)
        following = "" if job is None else str(job.id)
        if job is not None and job.state in FINAL:
            following = await self._begin_again(job, dead_letter_id)
        await self.graveyard.redrive(letter, attempt, self._now())
        return following

    async def _begin_again(self, job: Any, dead_letter_id: str) -> str:
        given = {name: getattr(job, name) for name in _COPIED}
        targets = router.PlanMediaResponse.FromString(job.targets).targets
        first = targets[:RACERS] if job.parallel else targets[:1]
        now, job_id = self._now(), new_id("job")
        new = NewJob(
            **given,
            id=job_id,
            tokens=most_of(targets, parallel=job.parallel)[1],
            idempotency_key=f"redrive:{dead_letter_id}",
            hold_id=f"hold_{job_id}" if job.estimate else "",
            deadline_at=now + job.deadline_at - job.created_at,
            routes=routes_of(first, job.priority),
        )
        known = await self.admission.jobs.known_by_key(
            Owner(job.organisation_id, job.owner), new.idempotency_key
        )
        if known is not None:
            return str(known.id)
        new = replace(new, hold_until=now + self.admission.hold_s(new.deadline_at) * SECOND)
        hold = partial(self.admission.hold, new, now)
        row = await self.admission.begin_held([new], hold, partial(self.admission.jobs.create, new, now))
        return str(row.id)

    def _now(self) -> int:
        return round(self.clock().timestamp() * SECOND)


_COPIED = (
    "organisation_id",
    "owner",
    "key_id",
    "user_id",
    "workspace_id",
    "project_id",
    "kind",
    "priority",
    "model",
    "input",
    "targets",
    "fingerprint",
    "strict",
    "parallel",
    "webhook_endpoint_id",
    "estimate",
)
