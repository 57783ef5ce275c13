"""Lets a job in: read what is asked, plan, hold the credits, begin. Nothing is begun that cannot be paid."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Protocol

from omnihub.billing.v1 import billing_service_pb2 as billing
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.common.v1.media_pb2 import MediaInput
from omnihub.router.v1 import media_router_service_pb2 as router
from omnihub.router.v1.media_router_service_api import MediaRouterService
from omnihub.workflow.v1 import job_service_pb2 as pb
from sqlalchemy.exc import DBAPIError

from services.common.finishing import finished
from services.common.ids import new_id
from services.common.rpc import Call, RpcError
from services.credits.media_rating import most_tokens
from services.workflow.domain.errors import IdempotencyKeyReusedError
from services.workflow.domain.kinds import INTERACTIVE, kind_of
from services.workflow.domain.routes import routes_of
from services.workflow.store.jobs import Jobs, NewJob
from services.workflow.store.records import SECOND, Owner

LIMIT_S = 10.0
RACERS = 3
# A hold outlives its job, so that an end shortly before the deadline is still paid from it.
HOLD_GRACE_S = 3600
LONGEST_HOLD_S = 86_400
RELEASED_AT_ONCE = 8
# After these nobody knows whether billing has held.
UNANSWERED = frozenset({"CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE"})

Hold = Callable[[], Awaitable[None]]
Create = Callable[[], Awaitable[tuple[Any, bool]]]

_logger = logging.getLogger(__name__)


class InputCheck(Protocol):
    """Checks and resolves what goes into a generation: files, foreign addresses, consents."""

    async def __call__(self, given: MediaInput, call: Call) -> MediaInput:
        """Return the input as workers get it. Raises RpcError naming what is refused."""
        ...


EndpointCheck = Callable[[str, Call], Awaitable[None]]
"""Raises RpcError unless an address for notifications belongs to the caller."""


async def _any_endpoint(endpoint_id: str, call: Call) -> None:
    """Refuse nothing."""


@dataclass(frozen=True, slots=True)
class Admission:
    """Begins jobs."""

    jobs: Jobs
    router: MediaRouterService
    billing: BillingService
    check: InputCheck
    clock: Callable[[], datetime]
    check_endpoint: EndpointCheck = _any_endpoint

    async def begin(self, request: pb.CreateJobRequest, call: Call) -> Any:
        """Begin a job and return its row, or that of the job this idempotency key began.

        Raises RpcError and JobError; nothing has then been begun.
        """
        key = request.idempotency_key or call.idempotency_key
        fingerprint = fingerprint_of(request)
        known = await self.known(key, fingerprint, call)
        if known is not None:
            return known
        new = await self.prepare(request, call, key, fingerprint)
        now = self.now()
        hold, create = partial(self.hold, new, now), partial(self.jobs.create, new, now)
        return await self.begin_held([new], hold, create)

    async def begin_held(self, jobs: Sequence[NewJob], hold: Hold, create: Create) -> Any:
        """Hold for jobs and begin them; return the row that `create` returns, with whether it is new.

        A caller who leaves meanwhile stops neither: the hold would stay, without a job, until it expires.
        """
        return await finished(self._begin_held(jobs, hold, create))

    async def _begin_held(self, jobs: Sequence[NewJob], hold: Hold, create: Create) -> Any:
        await hold()
        try:
            row, created = await create()
        except Exception as error:
            # A connection that breaks does not tell whether its commit was done.
            if not (isinstance(error, DBAPIError) and error.connection_invalidated):
                await self.release(jobs)
            raise
        if not created:
            await self.release(jobs)
        return row

    async def known(self, key: str, fingerprint: str, call: Call) -> Any:
        """Return the job that a key began, or None. Raises IdempotencyKeyReusedError."""
        known = await self.jobs.known_by_key(owner_of(call), key) if key else None
        if known is not None and known.fingerprint != fingerprint:
            raise IdempotencyKeyReusedError(
                f"the key {key!r} began another job, {known.id}; use a new one", job_id=known.id
            )
        return known

    async def prepare(self, request: pb.CreateJobRequest, call: Call, key: str, fingerprint: str) -> NewJob:
        """Plan a job: nothing is held and nothing begun. Raises RpcError and JobError."""
        kind = kind_of(request.input)
        if request.webhook_endpoint_id:
            await self.check_endpoint(request.webhook_endpoint_id, call)
        checked = await self.check(request.input, call)
        plan = await self.router.plan_media(
            router.PlanMediaRequest(
                model=request.model,
                input=checked,
                max_cost=request.max_cost,
                allowed_models=call.identity.allowed_models,
                organisation_id=call.identity.organisation_id,
            ),
            call.within(LIMIT_S),
        )
        priority = request.priority or INTERACTIVE
        racing = plan.targets[:RACERS] if request.parallel else plan.targets[:1]
        job_id = new_id("job")
        estimate, tokens = most_of(plan.targets, parallel=request.parallel)
        deadline_at = self.now() + (request.deadline_s or kind.deadline_s) * SECOND
        return NewJob(
            id=job_id,
            organisation_id=call.identity.organisation_id,
            owner=owner_of(call).owner,
            key_id=call.identity.key_id,
            user_id=call.identity.user_id,
            workspace_id=call.identity.workspace_id,
            project_id=call.identity.project_id,
            kind=kind.name,
            priority=priority,
            model=request.model or "auto",
            input=checked.SerializeToString(),
            targets=plan.SerializeToString(),
            idempotency_key=key,
            fingerprint=fingerprint,
            strict=request.strict,
            parallel=request.parallel and len(racing) > 1,
            webhook_endpoint_id=request.webhook_endpoint_id,
            # Also of what is free: it counts in limits of requests and tokens.
            hold_id=f"hold_{job_id}",
            estimate=estimate,
            tokens=tokens,
            deadline_at=deadline_at,
            hold_until=self.now() + self.hold_s(deadline_at) * SECOND,
            routes=routes_of(racing, priority),
        )

    def hold_s(self, deadline_at: int) -> int:
        """Return for how long a job's credits are held at first; longer ones are extended while it runs."""
        return min((deadline_at - self.now()) // SECOND + HOLD_GRACE_S, LONGEST_HOLD_S)

    async def hold(self, new: NewJob, now: int) -> None:
        """Hold what a job may cost, and draw on its caller's limits. Raises RpcError when that is not there.

        `now` is when the job begins: its charge has the same time, which decides the windows of limits.
        """
        if not new.hold_id:
            return
        limits = billing.HoldLimits(
            workspace_id=new.workspace_id, project_id=new.project_id, key_id=new.key_id, tokens=new.tokens
        )
        limits.at.FromMicroseconds(now)
        request = billing.CreateHoldRequest(
            hold_id=new.hold_id,
            organisation_id=new.organisation_id,
            amount_nano_credits=new.estimate,
            ttl_s=self.hold_s(new.deadline_at),
            limits=limits,
        )
        try:
            await self.billing.create_hold(request, Call.internal(LIMIT_S))
        except RpcError as error:
            if error.reason in UNANSWERED:
                await self.release([new])
            raise

    async def release(self, jobs: Sequence[NewJob]) -> None:
        """Set free what was held for jobs that are not begun; what cannot be set free expires by itself."""
        gate = asyncio.Semaphore(RELEASED_AT_ONCE)

        async def release(hold_id: str) -> None:
            request = billing.ReleaseHoldRequest(hold_id=hold_id)
            async with gate:
                try:
                    await self.billing.release_hold(request, Call.internal(LIMIT_S))
                except RpcError as error:
                    if error.reason != "NOT_FOUND":
                        _logger.warning("hold_not_released %s %s", hold_id, error.reason)

        await asyncio.gather(*(release(new.hold_id) for new in jobs if new.hold_id))

    def now(self) -> int:
        """Return the time in microseconds since 1970."""
        return round(self.clock().timestamp() * SECOND)


def most_of(targets: Sequence[router.MediaTarget], *, parallel: bool) -> tuple[int, int]:
    """Return the most nano-credits and tokens that a job may use, whichever of its targets make it."""
    if parallel:
        targets = targets[:RACERS]
    together = sum if parallel else max
    return (
        together(target.estimate_nano_credits for target in targets),
        together(most_tokens(target.expected, target.price) for target in targets),
    )


def owner_of(call: Call) -> Owner:
    """Return whom a call's jobs belong to."""
    return Owner(call.identity.organisation_id, call.identity.key_id or call.identity.user_id)


def fingerprint_of(request: pb.CreateJobRequest | pb.CreateBatchRequest) -> str:
    """Return what must be equal when a key is used again: everything but the key and the waiting."""
    same = type(request).FromString(request.SerializeToString())
    same.ClearField("idempotency_key")
    if isinstance(same, pb.CreateJobRequest):
        same.ClearField("wait_s")
    return hashlib.sha256(same.SerializeToString(deterministic=True)).hexdigest()
