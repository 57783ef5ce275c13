"""Works off the messages of attempts. Every step can be repeated: no crash loses or doubles anything."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any, Protocol

from omnihub.common.v1.media_pb2 import MediaInput, MediaOutput
from omnihub.provider.v1 import media_provider_service_pb2 as provider
from omnihub.router.v1 import media_router_service_pb2 as router
from omnihub.router.v1.media_router_service_api import MediaRouterService
from omnihub.workflow.v1.effect_pb2 import EffectResult
from sqlalchemy.exc import SQLAlchemyError

from services.common.finishing import finished
from services.common.gathering import Gathering
from services.common.rpc import Call, RpcError
from services.credits.media_rating import charge_media
from services.workflow.domain.retry import Failure, pause_of
from services.workflow.domain.routes import routes_of
from services.workflow.domain.states import ACCEPTED, CANCEL_REQUESTED, FINAL
from services.workflow.engine.crash import CrashPoints
from services.workflow.store.attempts import Claim
from services.workflow.store.notices import Notices
from services.workflow.store.records import SECOND
from services.workflow.store.rounds import Rounds
from services.workflow.store.together import Report, Together

LEASE_S = 6.0
# A lease is renewed this often while it lasts.
RENEWALS = 4
ASK_LIMIT_S = 600.0
PUT_BACK_S = 5.0
GIVE_BACK_LIMIT_S = 2.0
POLL_LIMIT_S = 60.0
# What many attempts want of the database at the same time waits so long for company.
LINGER_S = 0.02
# Within this a provider that works within the call learns that nobody wants it any more.
LOOK_S = 0.5
# How far a provider's clock may be from ours, when its jobs are looked through.
CLOCKS_US = 300 * SECOND
FIRST_POLL_S = 1.0
LONGEST_POLL_S = 30.0
# So long after a job's end what its providers still make is waited for, and paid.
LATE_RESULT_S = 86_400
# What a provider made and this platform does not take.
REFUSED_OUTPUT = frozenset({"URL_REFUSED", "UNSUPPORTED_MEDIA", "BODY_TOO_LARGE"})

_logger = logging.getLogger(__name__)


class OutputStore(Protocol):
    """Where outputs are kept."""

    async def keep(
        self, organisation_id: str, job_id: str, provider_name: str, output: provider.ProviderOutput
    ) -> MediaOutput:
        """Return the output as it is kept: with id, size, type and hash. Raises RpcError."""
        ...


class Worker:
    """Takes attempts and brings them to their end."""

    def __init__(
        self,
        store: Together,
        rounds: Rounds,
        router_service: MediaRouterService,
        outputs: OutputStore,
        name: str,
        clock: Callable[[], datetime],
        crash: CrashPoints,
        webhook_base: str = "",
        lease_s: float = LEASE_S,
        late_result_s: int = LATE_RESULT_S,
    ) -> None:
        self._store = store
        self._rounds = rounds
        self._lease_s = lease_s
        self._late_result_us = late_result_s * SECOND
        self._router = router_service
        self._outputs = outputs
        self._name = name
        self._clock = clock
        self._crash = crash
        self._webhook_base = webhook_base
        # What the many attempts of this worker want of the database at the same time is one transaction.
        self._claiming: Gathering[str, Claim | None] = Gathering(
            lambda ids: store.claim_all(ids, name, lease_s, self._now()), linger_s=LINGER_S
        )
        self._renew: Gathering[Claim, bool] = Gathering(
            lambda claims: store.renew_all(claims, lease_s, self._now())
        )
        self._completing: Gathering[Report, bool] = Gathering(
            lambda reports: store.complete_all(reports, self._now()), linger_s=LINGER_S
        )

    def _now(self) -> int:
        return round(self._clock().timestamp() * SECOND)

    async def work(self, attempt_id: str) -> None:
        """Work off one message. Returns once nothing is left to do for it; what fails is written down."""
        claim = await self._claim(attempt_id)
        if claim is None:
            return
        self._crash.pass_by("after_claim")
        keeping = asyncio.create_task(self._keep(claim))
        try:
            await self._attempt(claim)
        except RpcError as error:
            await finished(self._fail(claim, error), GIVE_BACK_LIMIT_S)
        except asyncio.CancelledError:
            await self._give_back(claim)
            raise
        finally:
            keeping.cancel()

    async def _give_back(self, claim: Claim) -> None:
        """Leave an attempt to others because this worker is to stop: a lease that ends counts as a death."""
        try:
            async with asyncio.timeout(GIVE_BACK_LIMIT_S):
                await self._store.put_back(claim, "WORKER_STOPPED", self._now(), True, self._now())
        except (SQLAlchemyError, OSError) as error:
            _logger.warning("claim_not_given_back %s %s", claim.attempt.id, type(error).__name__)

    async def _claim(self, attempt_id: str) -> Claim | None:
        """Take an attempt: with others where that is simple, otherwise alone."""
        claim = await self._claiming(attempt_id)
        return claim or await self._store.claim(attempt_id, self._name, self._lease_s, self._now())

    async def _complete(self, report: Report) -> None:
        """Report what was made, also when this worker is to stop meanwhile: it is paid for."""
        await finished(self._report(report), GIVE_BACK_LIMIT_S)

    async def _report(self, report: Report) -> None:
        """Report it with others where that is simple, otherwise alone."""
        if not await self._completing(report):
            await self._store.complete(report.attempt, report.fence, report.result, self._now())

    async def _keep(self, claim: Claim) -> None:
        """Keep the claim while the provider is being asked."""
        held = True
        while held:
            await asyncio.sleep(self._lease_s / RENEWALS)
            try:
                held = await self._renew(claim)
            except (SQLAlchemyError, OSError) as error:
                _logger.warning("claim_not_renewed %s %s", claim.attempt.id, type(error).__name__)

    async def _keep_reserved(self, attempt_id: str) -> None:
        """Keep an end reserved while its outputs are fetched: who dies meanwhile leaves it to others soon."""
        while True:
            await asyncio.sleep(self._lease_s / RENEWALS)
            try:
                await self._rounds.keep_reserved(attempt_id, self._lease_s, self._now())
            except (SQLAlchemyError, OSError) as error:
                _logger.warning("end_not_reserved %s %s", attempt_id, type(error).__name__)

    async def _attempt(self, claim: Claim) -> None:
        known = None if claim.first else await self._store.result_of(claim.attempt.effect_key)
        if known is not None:
            await self._complete(Report(claim.attempt, claim.fence, known))
            return
        target = target_of(claim)
        if claim.again and await self._adopted(claim, target):
            return
        answer = await self._ask(claim, target)
        self._crash.pass_by("after_provider")
        response = answer.response
        if response.provider_job_id:
            poll_at = self._now() + round(FIRST_POLL_S * SECOND)
            if not await self._store.accepted(claim, response.provider_job_id, poll_at, self._now()):
                return
            self._crash.pass_by("after_accept")
            row = claim.attempt._replace(
                state=ACCEPTED, provider_job_id=response.provider_job_id, lease_until=0
            )
            try:
                await self.take_in(row, claim.job, response.progress, response.receipt)
            except RpcError as error:
                # Its provider has it: it is asked how far it is, never to make it again.
                await self._poll_failed(row, claim.job, error)
            return
        try:
            await self._end(claim.attempt, claim.job, claim.fence, response.progress, response.receipt)
        except RpcError as error:
            if error.reason in REFUSED_OUTPUT:
                raise
            # The provider has made it: it is asked for the same again, never for another.
            wait = self._now() + round(PUT_BACK_S * SECOND)
            await self._store.put_back(claim, error.reason, wait, True, self._now())

    async def _ask(self, claim: Claim, target: router.MediaTarget) -> router.SubmitMediaResponse:
        """Ask the provider to make it. Raises RpcError, also CANCELLED.

        Who makes it within the call and can be stopped is stopped, by leaving the call, once nobody wants it.
        From others the answer is taken: they are paid for it.
        """
        request = router.SubmitMediaRequest(attempt=self._attempt_message(claim, target))
        answer = self._router.submit_media(request, Call.internal(ASK_LIMIT_S))
        if not (target.immediate and target.cancels):
            return await answer
        asking = asyncio.ensure_future(answer)
        unwanted = asyncio.create_task(self._until_unwanted(claim.job.id))
        try:
            await asyncio.wait((asking, unwanted), return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise RpcError("CANCELLED", "nobody wants it any more")
            return asking.result()
        finally:
            for task in (asking, unwanted):
                task.cancel()
            await asyncio.gather(asking, unwanted, return_exceptions=True)

    async def _until_unwanted(self, job_id: str) -> None:
        """Return once a job has ended, or is to end."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                job = await self._store.job_of(job_id)
            except (SQLAlchemyError, OSError) as error:
                _logger.warning("job_not_read %s %s", job_id, type(error).__name__)
                continue
            if job is None or job.state in FINAL or job.state == CANCEL_REQUESTED:
                return

    async def _adopted(self, claim: Claim, target: router.MediaTarget) -> bool:
        """Go on with what an earlier worker may have begun. Tells whether there is something."""
        if target.idempotent:
            return False  # Asking again begins nothing new.
        if not target.finds:
            await self._store.flag_maybe_double(claim.job.id)
            return False
        request = provider.FindMediaRequest(
            provider=target.provider,
            model=target.model,
            effect_key=claim.attempt.effect_key,
            since=claim.job.created_at / SECOND,
            attempt=self._attempt_message(claim, target),
            known=await self._store.provider_jobs_since(claim.job.created_at - CLOCKS_US),
        )
        found = await self._router.find_media(
            router.FindMediaRequest(request=request), Call.internal(POLL_LIMIT_S)
        )
        if not found.provider_job_id:
            return False
        now = self._now()
        return await self._store.accepted(claim, found.provider_job_id, now, now)

    def _attempt_message(self, claim: Claim, target: router.MediaTarget) -> provider.MediaAttempt:
        webhook = f"{self._webhook_base}/webhooks/{target.provider}" if self._webhook_base else ""
        return provider.MediaAttempt(
            provider=target.provider,
            model=target.model,
            input=MediaInput.FromString(claim.job.input),
            effect_key=claim.attempt.effect_key,
            webhook_url=webhook if target.webhooks else "",
            strict=claim.job.strict,
            priority="low" if claim.job.priority == "batch" else "normal",
        )

    async def poll(self, attempt: Any, job: Any) -> None:
        """Ask how far a provider is with an attempt, or that it stops when nobody wants it any more."""
        target = targets_of(job)[attempt.target_index]
        try:
            unwanted = job.state in FINAL or job.state == CANCEL_REQUESTED
            if unwanted and not attempt.cancel_sent:
                await self._cancel(attempt, target)
            request = provider.PollMediaRequest(
                provider=target.provider,
                model=target.model,
                provider_job_id=attempt.provider_job_id,
                kind=job.kind,
            )
            answer = await self._router.poll_media(
                router.PollMediaRequest(request=request), Call.internal(POLL_LIMIT_S)
            )
            await self.take_in(attempt, job, answer.progress, ())
        except RpcError as error:
            await self._poll_failed(attempt, job, error)

    async def _poll_failed(self, attempt: Any, job: Any, error: RpcError) -> None:
        _logger.info("poll_failed %s %s", attempt.id, error.reason)
        if error.reason == "NOT_FOUND":
            message = "the provider has forgotten this job"
            await self._store_failure(attempt, job, attempt.fence, Failure("PROVIDER_FAILED", message))
        elif error.reason in REFUSED_OUTPUT:
            failure = Failure(error.reason, f"its output was refused: {error.message}")
            await self._store_failure(attempt, job, attempt.fence, failure)
        else:
            await self._poll_later(attempt, job)

    async def _cancel(self, attempt: Any, target: router.MediaTarget) -> None:
        if target.cancels:
            request = provider.CancelMediaRequest(
                provider=target.provider, model=target.model, provider_job_id=attempt.provider_job_id
            )
            await self._router.cancel_media(
                router.CancelMediaRequest(request=request), Call.internal(POLL_LIMIT_S)
            )
        await self._rounds.cancel_sent(attempt.id)

    async def take_in(self, attempt: Any, job: Any, progress: provider.MediaProgress, receipt: Any) -> None:
        """Take in what a provider says about an attempt that it has accepted, in a poll or in a notice."""
        if progress.state in ("succeeded", "failed", "cancelled"):
            # Who comes second to the same end leaves it to the first.
            if await self._rounds.taking_in(attempt.id, self._lease_s, self._now()):
                keeping = asyncio.create_task(self._keep_reserved(attempt.id))
                try:
                    await self._end(attempt, job, attempt.fence, progress, receipt)
                finally:
                    keeping.cancel()
            return
        fraction = progress.fraction if progress.HasField("fraction") else None
        position = progress.queue_position if progress.HasField("queue_position") else None
        if fraction is not None or position is not None:
            await self._store.progress(attempt.id, fraction, position, self._now())
        await self._poll_later(attempt, job)

    async def notice(self, notices: Notices, attempt_id: str) -> None:
        """Take in what a provider has notified of an attempt. An end without outputs is asked for."""
        attempt, job, noted = await notices.notices_of(attempt_id)
        if attempt is None or attempt.state != ACCEPTED:
            return
        told = [provider.MediaProgress.FromString(each) for each in noted]
        ends = [each for each in told if each.state in ("succeeded", "failed", "cancelled")]
        progress = ends[0] if ends else told[-1]
        if progress.state == "succeeded" and not progress.outputs:
            await self.poll(attempt, job)
            return
        try:
            await self.take_in(attempt, job, progress, ())
        except RpcError as error:
            await self._poll_failed(attempt, job, error)

    async def _poll_later(self, attempt: Any, job: Any) -> None:
        """Ask again in a while, unless the job ended too long ago."""
        if job.state in FINAL and job.ended_at + self._late_result_us <= self._now():
            if await self._store.give_up(attempt.id, attempt.fence, self._now()):
                # Whoever runs this may ask the provider what became of it.
                _logger.warning("attempt_abandoned %s %s %s", job.id, attempt.id, attempt.provider_job_id)
            return
        pause = min(LONGEST_POLL_S, FIRST_POLL_S * 1.5 ** min(attempt.polls, 20))
        await self._rounds.poll_again(attempt.id, self._now() + round(pause * SECOND))

    async def _end(
        self, attempt: Any, job: Any, fence: int, progress: provider.MediaProgress, receipt: Any
    ) -> None:
        if progress.state != "succeeded":
            cancelled = progress.state == "cancelled"
            reason = "CANCELLED" if cancelled else progress.reason or "PROVIDER_FAILED"
            failure = Failure(reason, progress.message or progress.state, progress.retryable)
            await self._store_failure(attempt, job, fence, failure)
            return
        target = targets_of(job)[attempt.target_index]
        result = EffectResult(
            usage=progress.usage, receipt=receipt, model_used=f"{target.provider}/{target.model}"
        )
        for output in progress.outputs:
            kept = await self._outputs.keep(job.organisation_id, job.id, target.provider, output)
            kept.synthetic = target.synthetic
            result.outputs.append(kept)
        margin = target.margin if target.HasField("margin") else None
        # By the price that was planned: the same for ever.
        result.charge.CopyFrom(charge_media(progress.usage, target.expected, target.price, margin))
        self._crash.pass_by("after_outputs")
        await self._complete(Report(attempt, fence, result))
        self._crash.pass_by("after_report")

    async def _fail(self, claim: Claim, error: RpcError) -> None:
        failure = failure_of(error)
        count = len(targets_of(claim.job))
        pause = pause_of(failure, claim.attempt.target_index, count, claim.attempt.id)
        target = target_of(claim)
        if failure.maybe_accepted and not (target.finds or target.idempotent):
            await self._store.flag_maybe_double(claim.job.id)
        if pause is None or claim.job.parallel:
            await self._store_failure(claim.attempt, claim.job, claim.fence, failure)
            return
        due_at = self._now() + round(pause * SECOND)
        await self._store.put_back(claim, error.reason, due_at, failure.maybe_accepted, self._now())

    async def _store_failure(self, attempt: Any, job: Any, fence: int, failure: Failure) -> None:
        await self._store.fail(
            attempt.id, fence, failure, routes_of(targets_of(job), job.priority), self._now()
        )


def failure_of(error: RpcError) -> Failure:
    """Return what a refused or lost call says about an attempt."""
    circuit_open = error.metadata.get("circuit") == "open"
    lost = error.reason in ("DEADLINE_EXCEEDED", "UNAVAILABLE", "INTERNAL") and not circuit_open
    return Failure(
        error.reason,
        error.message,
        error.metadata.get("retryable") == "true" or error.reason == "DEADLINE_EXCEEDED",
        error.retry_after_s or 0.0,
        maybe_accepted=lost or error.metadata.get("accepted") == "unknown",
        circuit_open=circuit_open,
    )


def targets_of(job: Any) -> list[router.MediaTarget]:
    """Return where a job may be made, as it was planned."""
    return list(router.PlanMediaResponse.FromString(job.targets).targets)


def target_of(claim: Claim) -> router.MediaTarget:
    """Return where an attempt asks."""
    index: int = claim.attempt.target_index
    return targets_of(claim.job)[index]
