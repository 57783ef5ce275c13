"""What happens by itself: providers are asked how far they are, deadlines pass, what was lost comes back."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from omnihub.billing.v1 import billing_service_pb2 as billing
from omnihub.billing.v1.billing_service_api import BillingService
from sqlalchemy.exc import SQLAlchemyError

from services.common.rpc import Call, RpcError
from services.workflow.engine.worker import LEASE_S, Worker
from services.workflow.store.jobs import Jobs
from services.workflow.store.records import SECOND
from services.workflow.store.rounds import Rounds

TICK_S = 0.5
SWEEP_S = 2.0
# Each provider has a bound of its own, so that one that does not answer takes nobody else's turn.
POLLS_AT_ONCE = 25
# Of a provider with so many polls begun or waiting no others are taken.
MOST_POLLS = 200
# Others leave an attempt alone that is being asked about; should who asks die, they ask after this.
POLL_HIDDEN_S = 6.0
LIMIT_S = 10.0
# A hold that ends sooner than this is extended while its job may still run.
EXTEND_BEFORE_S = 6 * 3600
HOLD_GRACE_S = 3600
LONGEST_HOLD_S = 86_400

_logger = logging.getLogger(__name__)


class Clockwork:
    """Two loops; replicas share the work through the database."""

    def __init__(
        self,
        jobs: Jobs,
        rounds: Rounds,
        worker: Worker,
        billing_service: BillingService,
        clock: Callable[[], datetime],
        wake: Callable[[], None],
        sweep_s: float = SWEEP_S,
        lease_s: float = LEASE_S,
    ) -> None:
        self._jobs = jobs
        self._rounds = rounds
        self._worker = worker
        self._billing = billing_service
        self._clock = clock
        self._wake = wake
        self._sweep_s = sweep_s
        self._lease_us = round(lease_s * SECOND)
        self._patient_until = 0
        self._gates: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(POLLS_AT_ONCE)
        )
        # By attempt.
        self.asking: dict[str, asyncio.Task[None]] = {}
        self._asked: Counter[str] = Counter()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin."""
        loops = ((self.poll, TICK_S), (self.sweep, self._sweep_s))
        self._tasks = [asyncio.create_task(_repeat(action, pause)) for action, pause in loops]

    async def stop(self) -> None:
        """End."""
        tasks = [*self._tasks, *self.asking.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _now(self) -> int:
        return round(self._clock().timestamp() * SECOND)

    async def poll(self) -> None:
        """Begin to ask every provider whose time has come. No round waits for the answers of another."""
        full = [provider for provider, count in self._asked.items() if count >= MOST_POLLS]
        for attempt, job in await self._rounds.due_polls(self._now(), POLL_HIDDEN_S, full):
            # Who is still being asked is now hidden from others for longer.
            if attempt.id not in self.asking:
                self._asked[attempt.provider] += 1
                self.asking[attempt.id] = asyncio.create_task(self._ask(attempt, job))

    async def _ask(self, attempt: Any, job: Any) -> None:
        try:
            async with self._gates[attempt.provider]:
                await self._worker.poll(attempt, job)
        except Exception:
            # It comes again when it is not hidden any more.
            _logger.exception("poll_broken %s", attempt.id)
        finally:
            del self.asking[attempt.id]
            self._asked[attempt.provider] -= 1

    async def sweep(self) -> None:
        """End what is too late, bring back what was lost, keep credits held for what still runs."""
        try:
            expired = await self._jobs.expire_due(self._now())
            patient = self._now() < self._patient_until
            brought_back = 0 if patient else await self._rounds.bring_back_lost(self._now())
            await self._rounds.unpark_all(self._now())
        except (SQLAlchemyError, OSError):
            # The database was away, and with it everybody's renewals: who lives gets the time for one.
            self._patient_until = self._now() + self._lease_us
            raise
        if expired or brought_back:
            self._wake()
        await self._extend_holds()

    async def _extend_holds(self) -> None:
        for job in await self._rounds.ending_holds(self._now() + EXTEND_BEFORE_S * SECOND):
            wanted = (job.deadline_at - self._now()) // SECOND + HOLD_GRACE_S
            ttl_s = max(HOLD_GRACE_S, min(wanted, LONGEST_HOLD_S))
            request = billing.ExtendHoldRequest(
                hold_id=job.hold_id, amount_nano_credits=job.estimate, ttl_s=ttl_s
            )
            try:
                await self._billing.extend_hold(request, Call.internal(LIMIT_S))
            except RpcError as error:
                _logger.warning("hold_not_extended %s %s", job.id, error.reason)
                if error.reason in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
                    # Billing is away. To wait so long for each would hold up the sweep: there is time enough.
                    return
                if error.reason not in ("NOT_FOUND", "PRECONDITION_FAILED"):
                    continue
                # It has ended: what the job makes is booked all the same.
            await self._rounds.held_until(job.id, self._now() + ttl_s * SECOND)


async def _repeat(action: Callable[[], Awaitable[None]], pause_s: float) -> None:
    while True:
        try:
            await action()
        except Exception:
            _logger.exception("job_clockwork_failed")
        await asyncio.sleep(pause_s)
