"""Pays for ended jobs: one charge per attempt that made something, the rest of the hold set free."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any

from omnihub.billing.v1 import billing_service_pb2 as billing
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.billing.v1.usage_pb2 import Charge
from omnihub.workflow.v1.effect_pb2 import EffectResult

from services.common.rpc import Call, RpcError
from services.credits.refusals import NEVER_BOOKED
from services.workflow.domain.kinds import BATCH_KIND
from services.workflow.domain.states import FINAL
from services.workflow.engine.crash import CrashPoints
from services.workflow.store.attempts import Attempts
from services.workflow.store.batches import Batches
from services.workflow.store.records import SECOND

LIMIT_S = 10.0
# A race whose losers outlast its hold is paid so long before that ends.
BEFORE_EXPIRY_S = 60

_logger = logging.getLogger(__name__)


class Settler:
    """Books at billing, as often as asked: a charge's id is its attempt's, for ever."""

    def __init__(
        self,
        jobs: Batches,
        attempts: Attempts,
        service: BillingService,
        clock: Callable[[], datetime],
        crash: CrashPoints | None = None,
    ) -> None:
        self._jobs = jobs
        self._attempts = attempts
        self._billing = service
        self._clock = clock
        self._crash = crash or CrashPoints("")

    async def settle_many(self, job_ids: Sequence[str]) -> Collection[str]:
        """Pay for ended jobs in one booking; return those that need not be looked at again.

        What cannot be booked together is booked one by one, so that one job does not keep up the others.
        """
        try:
            await self._settle(job_ids)
        except RpcError as error:
            if len(job_ids) == 1 and error.reason in NEVER_BOOKED:
                # Asking again changes nothing. The job stays unsettled, for a person to look at.
                _logger.error("charge_refused_by_billing %s %s", job_ids[0], error.message)
                return job_ids
            if len(job_ids) == 1 or error.reason == "UNAVAILABLE":
                _logger.warning("settling_failed %s %s", error.reason, error.message)
                return ()
            done: list[str] = []
            for job_id in job_ids:
                done += await self.settle_many([job_id])
            return done
        return job_ids

    async def settle(self, job_id: str) -> None:
        """Pay for what the attempts of one ended job made. Raises RpcError when billing cannot be reached."""
        await self._settle([job_id])

    async def _settle(self, job_ids: Sequence[str]) -> None:
        jobs = {job.id: job for job in await self._jobs.ended(job_ids) if job.state in FINAL}
        if not jobs:
            return
        # Asked before the results: a loser of a race, or a late one, brings its job back here when it ends.
        running = await self._attempts.running(list(jobs))
        charges: dict[str, list[Charge]] = defaultdict(list)
        for job_id, attempt_id, result in await self._attempts.results_of(list(jobs)):
            charges[job_id].append(_charge(jobs[job_id], attempt_id, result))
        now = round(self._clock().timestamp() * SECOND)
        waiting = _waiting([jobs[job_id] for job_id in charges if job_id in running], now)
        for job_id in waiting:
            del charges[job_id]
        if charges:
            everything = [charge for each in charges.values() for charge in each]
            await self._billing.settle(billing.SettleRequest(charges=everything), Call.internal(LIMIT_S))
        self._crash.pass_by("after_settle")
        await self._jobs.settle_later(waiting, now)
        costs = await self._batch_costs([job for job in jobs.values() if job.kind == BATCH_KIND])
        for job in jobs.values():
            if job.kind == BATCH_KIND or job.id in running:
                continue
            if job.hold_id and not charges[job.id]:
                await self._release(job.hold_id)
            costs[job.id] = sum(charge.amount_nano_credits for charge in charges[job.id])
        await self._jobs.settled(costs, max(job.ended_at for job in jobs.values()))

    async def _batch_costs(self, batches: Sequence[Any]) -> dict[str, int]:
        """Return what batches cost whose items are all settled; the others come back after their last one."""
        costs = {}
        for batch in batches:
            items = await self._jobs.items_of(batch.id)
            if all(item.settled for item in items):
                costs[batch.id] = sum(item.cost for item in items)
        return costs

    async def _release(self, hold_id: str) -> None:
        request = billing.ReleaseHoldRequest(hold_id=hold_id)
        try:
            await self._billing.release_hold(request, Call.internal(LIMIT_S))
        except RpcError as error:
            if error.reason != "NOT_FOUND":
                raise


def _waiting(racing: Sequence[Any], now: int) -> dict[str, int]:
    """Return the races that are paid later, and when at the latest: before their holds expire.

    A hold ends with what is first paid from it. What it then sets free would be missing when the losers are
    paid, the last of which brings its race back.
    """
    latest = {job.id: job.hold_until - BEFORE_EXPIRY_S * SECOND for job in racing}
    return {job_id: at for job_id, at in latest.items() if at > now}


def _charge(job: Any, attempt_id: str, result: EffectResult) -> Charge:
    """Return what is to be paid for one result: what was rated, and whose it is."""
    charge = Charge(
        charge_id=attempt_id,
        organisation_id=job.organisation_id,
        hold_id=job.hold_id,
        request_id=job.id,
        key_id=job.key_id,
        user_id=job.user_id,
        workspace_id=job.workspace_id,
        project_id=job.project_id,
        provider=result.model_used.partition("/")[0],
        model=result.model_used,
        task=job.kind,
        modality=job.kind,
        state="complete",
    )
    # When it was admitted: what it drew of limits counts in that window.
    charge.at.FromMicroseconds(job.created_at)
    charge.MergeFrom(result.charge)
    if result.provider_request_id:
        charge.attempts.add(provider=charge.provider, id=result.provider_request_id)
    return charge
