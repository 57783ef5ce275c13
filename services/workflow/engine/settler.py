"""Pays for ended jobs: one charge per attempt that made something, the rest of the hold set free."""

from __future__ import annotations

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from omnihub.billing.v1 import billing_service_pb2 as billing
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.billing.v1.usage_pb2 import Charge
from omnihub.workflow.v1.effect_pb2 import EffectResult

from services.common.rpc import Call, RpcError
from services.workflow.store.attempts import Attempts
from services.workflow.store.jobs import Jobs

LIMIT_S = 10.0


class Settler:
    """Books at billing, as often as asked: a charge's id is its attempt's, for ever."""

    def __init__(self, jobs: Jobs, attempts: Attempts, service: BillingService) -> None:
        self._jobs = jobs
        self._attempts = attempts
        self._billing = service

    async def settle(self, job_id: str) -> None:
        """Pay for what the attempts of an ended job made. Raises RpcError when billing cannot be reached."""
        job = await self._jobs.job_of(job_id)
        if job is None:
            return
        made = await self._attempts.results_of(job_id)
        charges = [_charge(job, attempt_id, result) for attempt_id, result in made]
        if charges:
            await self._billing.settle(billing.SettleRequest(charges=charges), Call.internal(LIMIT_S))
        if await self._attempts.running(job_id):
            return  # A loser of a race, or a late one: its end comes back here.
        if job.hold_id and not any(charge.hold_id for charge in charges):
            await self._release(job.hold_id)
        await self._jobs.settled(job_id, sum(charge.amount_nano_credits for charge in charges))

    async def _release(self, hold_id: str) -> None:
        request = billing.ReleaseHoldRequest(hold_id=hold_id)
        try:
            await self._billing.release_hold(request, Call.internal(LIMIT_S))
        except RpcError as error:
            if error.reason != "NOT_FOUND":
                raise


def _charge(job: Any, attempt_id: str, result: EffectResult) -> Charge:
    provider = result.model_used.partition("/")[0]
    return Charge(
        charge_id=attempt_id,
        organisation_id=job.organisation_id,
        hold_id=job.hold_id,
        amount_nano_credits=result.amount_nano_credits,
        at=Timestamp(seconds=job.ended_at // 1_000_000),
        request_id=job.id,
        key_id=job.key_id,
        user_id=job.user_id,
        workspace_id=job.workspace_id,
        provider=provider,
        model=result.model_used,
        task=job.kind,
        modality=job.kind,
        price_version=result.price_version,
        cost_source=result.cost_source,
        state="complete",
        usage=result.usage.tokens,
    )
