"""Charges from the journal to billing: at least once, booked exactly once.

Also the reaper: leases of processes that died are closed, but only after every charge in the
journal that belongs to them has been booked. So a crash can neither lose usage nor free money twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence

from omnihub.billing.v1 import billing_service_pb2 as pb
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.billing.v1.usage_pb2 import Charge

from services.common.crash import CrashPoints
from services.common.rpc import Call, RpcError
from services.router.journal import Journal
from services.router.leases import RENEW_EVERY_S, Leases
from services.router.repeating import repeat
from services.router.store import JournalStore

# As many as the contract allows: a booking has its own cost, whatever its size.
BATCH = 1000
SETTLE_TIMEOUT_S = 30.0
# Records older than this are settled by any process: their own has had its time.
ORPHANED_AFTER_S = 15.0
HOUR_S = 3600.0
# What billing says about a charge that it will never book.
REFUSALS = ("INVALID_ARGUMENT", "IDEMPOTENCY_KEY_REUSED")
# When billing fails at so many in a row, it is not because of them.
FAILURES = 5

_logger = logging.getLogger(__name__)


class Settlement:
    """The background work of the journal."""

    def __init__(
        self,
        store: JournalStore,
        journal: Journal,
        billing: BillingService,
        instance_id: str,
        interval_s: float,
        crash: CrashPoints | None = None,
    ) -> None:
        self._crash = crash or CrashPoints()
        self._store = store
        self._journal = journal
        self._billing = billing
        self._instance_id = instance_id
        self._interval_s = interval_s
        self._tasks: list[asyncio.Task[None]] = []
        # Charges billing will not take. Tried again by the next start of the process.
        self._refused: set[str] = set()

    async def settle_own(self) -> None:
        """Book all charges this process has written.

        Those that are written meanwhile are left to the next turn: under load they would be booked a few at
        a time without pause, and a booking costs about the same for one charge as for a hundred.
        """
        unbooked = self._journal.unbooked
        left = len(unbooked)
        try:
            while left > 0 and (taken := unbooked.take(min(BATCH, left))):
                left -= len(taken)
                await self._book(_read(taken))
        except BaseException:
            unbooked.forget()
            raise
        if not unbooked.complete:
            unbooked.complete = True
            try:
                await self._settle(instance_id=self._instance_id)
            except BaseException:
                unbooked.complete = False
                raise

    async def settle_orphans(self) -> None:
        """Book charges that a process left behind."""
        await self._settle(before_ms=int((time.time() - ORPHANED_AFTER_S) * 1000))

    async def settle_lease(self, lease_id: str) -> None:
        """Book all charges of one lease."""
        await self._settle(lease_id=lease_id)

    async def replay(self) -> None:
        """Book everything the journal holds. Called before the first request is answered."""
        await self._settle()

    async def _settle(
        self, *, instance_id: str = "", before_ms: int | None = None, lease_id: str = ""
    ) -> None:
        while True:
            found = await self._store.unsettled(
                BATCH + len(self._refused), instance_id=instance_id, before_ms=before_ms, lease_id=lease_id
            )
            charges = [charge for charge in found if charge.charge_id not in self._refused][:BATCH]
            if charges:
                await self._book(pb.SettleRequest(charges=charges))
            if len(charges) < BATCH:
                return

    async def _book(self, request: pb.SettleRequest) -> None:
        """Book charges, one by one when billing refuses them together, or fails at them."""
        charges = request.charges
        self._crash.pass_by("before_settle")
        try:
            await self._billing.settle(request, Call.internal(SETTLE_TIMEOUT_S))
        except RpcError as error:
            if error.reason not in (*REFUSALS, "INTERNAL"):
                raise
            if len(charges) > 1:
                await self._book_each(charges)
                return
            if error.reason == "INTERNAL":
                raise
            # It stays in the journal, for a person to look at; it must not hold up the others.
            _logger.error("charge_refused_by_billing %s %s", charges[0].charge_id, error.message)
            self._refused.add(charges[0].charge_id)
            return
        self._crash.pass_by("after_settle")
        await self._journal.mark_settled([charge.charge_id for charge in charges])

    async def _book_each(self, charges: Sequence[Charge]) -> None:
        """Book charges one by one. One that billing fails at holds up no other; then its error is raised."""
        failure, in_a_row = None, 0
        for charge in charges:
            try:
                await self._book(pb.SettleRequest(charges=[charge]))
                in_a_row = 0
            except RpcError as error:
                failure, in_a_row = error, in_a_row + 1
                if error.reason != "INTERNAL" or in_a_row == FAILURES:
                    raise
                _logger.error("charge_not_booked %s %s", charge.charge_id, error.message)
        if failure is not None:
            # Whoever waits for all of them to be booked, such as a lease that is to be closed, waits on.
            raise failure

    async def reap(self, leases: Leases) -> None:
        """Close leases past their expiry, whoever held them, but none that `leases` still spends from."""
        request = pb.ListExpiredLeasesRequest()
        answer = await self._billing.list_expired_leases(request, Call.internal(SETTLE_TIMEOUT_S))
        for lease in answer.leases:
            if leases.is_open(lease.lease_id):
                continue
            await self.settle_lease(lease.lease_id)
            await self._billing.close_lease(
                pb.CloseLeaseRequest(lease_id=lease.lease_id), Call.internal(SETTLE_TIMEOUT_S)
            )

    def start(self, leases: Leases, retention_days: int) -> None:
        """Start the loops."""

        async def reap() -> None:
            await self.reap(leases)

        async def forget_old() -> None:
            await self._store.delete_before(int((time.time() - retention_days * 86400) * 1000))

        loops = [
            (self.settle_own, self._interval_s),
            (self.settle_orphans, ORPHANED_AFTER_S),
            (reap, RENEW_EVERY_S),
            (leases.maintain, RENEW_EVERY_S),
            (forget_old, HOUR_S),
        ]
        self._tasks = [asyncio.create_task(repeat(work, interval)) for work, interval in loops]

    async def stop(self) -> None:
        """Stop the loops, then book what this process has written."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.settle_own()


def _read(charges: Iterable[bytes]) -> pb.SettleRequest:
    """Return a request for serialised charges, each read into its place: messages made apart are copied."""
    request = pb.SettleRequest()
    for charge in charges:
        request.charges.add().MergeFromString(charge)
    return request
