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
from services.credits.refusals import NEVER_BOOKED
from services.router.accounting.journal import Journal
from services.router.accounting.leases import RENEW_EVERY_S, Leases
from services.router.accounting.store import JournalStore
from services.router.repeating import repeat

# As many as the contract allows: a booking has its own cost, whatever its size.
BATCH = 1000
SETTLE_TIMEOUT_S = 30.0
# Records older than this are settled by any process: their own has had its time.
ORPHANED_AFTER_S = 15.0
HOUR_S = 3600.0
# When billing fails at so many in a row, it may not be because of them: no more is asked in this turn.
FAILURES = 5
# So many that billing has failed at are passed by; the next one holds up those behind it.
MOST_FAILED = 1000

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
        # Charges billing has failed at, those first that were not tried for longest. Each turn tries some
        # again, one by one and after all others: it must not hold those up.
        self._failed: dict[str, RpcError] = {}

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
                if (failure := await self._book(_read(taken))) is not None:
                    raise failure
        except BaseException:
            unbooked.forget()
            raise
        if not unbooked.complete:
            unbooked.complete = True
            try:
                self._check(await self._settle(instance_id=self._instance_id))
            except BaseException:
                unbooked.complete = False
                raise

    async def settle_orphans(self) -> None:
        """Book charges that a process left behind."""
        self._check(await self._settle(before_ms=int((time.time() - ORPHANED_AFTER_S) * 1000)))

    async def settle_lease(self, lease_id: str) -> None:
        """Book all charges of one lease. Raises RpcError when one of them could not be booked."""
        self._check(await self._settle(lease_id=lease_id))

    async def replay(self) -> list[Charge]:
        """Book everything the journal holds, return what billing fails at. Raises RpcError.

        Called before the first request is answered.
        """
        return await self._settle()

    def _check(self, failing: Sequence[Charge]) -> None:
        """Raise billing's error when it fails at a charge: whoever waits for all of them waits on."""
        for charge in failing:
            if (error := self._failed.get(charge.charge_id)) is not None:
                raise error

    async def _settle(
        self, *, instance_id: str = "", before_ms: int | None = None, lease_id: str = ""
    ) -> list[Charge]:
        """Book what is found, and try again what billing has failed at before. Returns what it fails at."""
        before, failing = set(self._failed), dict[str, Charge]()
        while True:
            known = self._refused | self._failed.keys()
            found = await self._store.unsettled(
                BATCH + len(known), instance_id=instance_id, before_ms=before_ms, lease_id=lease_id
            )
            charges = [charge for charge in found if charge.charge_id not in known][:BATCH]
            if charges:
                await self._book(pb.SettleRequest(charges=charges))
            failing.update((charge.charge_id, charge) for charge in found if charge.charge_id in self._failed)
            if len(charges) < BATCH:
                break
        await self._book_again([failing[each] for each in self._failed if each in failing and each in before])
        return [charge for charge in failing.values() if charge.charge_id in self._failed]

    async def _book(self, request: pb.SettleRequest) -> RpcError | None:
        """Book charges, one by one when billing refuses them together, or fails at them.

        Returns the error of a charge that it fails at. Raises RpcError when it fails at many, or is away.
        """
        charges = request.charges
        self._crash.pass_by("before_settle")
        try:
            await self._billing.settle(request, Call.internal(SETTLE_TIMEOUT_S))
        except RpcError as error:
            if error.reason not in (*NEVER_BOOKED, "INTERNAL"):
                raise
            if len(charges) > 1:
                return await self._book_each(charges)
            self._failed.pop(charges[0].charge_id, None)
            if error.reason == "INTERNAL":
                self._fail(charges[0].charge_id, error)
                return error
            # It stays in the journal, for a person to look at; it must not hold up the others.
            _logger.error("charge_refused_by_billing %s %s", charges[0].charge_id, error.message)
            self._refused.add(charges[0].charge_id)
            return None
        self._crash.pass_by("after_settle")
        for charge in charges if self._failed else ():
            self._failed.pop(charge.charge_id, None)
        await self._journal.mark_settled([charge.charge_id for charge in charges])
        return None

    def _fail(self, charge_id: str, error: RpcError) -> None:
        """Remember a charge that billing fails at, as the one tried last. Raises it when they are many."""
        _logger.error("charge_not_booked %s %s", charge_id, error.message)
        if len(self._failed) == MOST_FAILED:
            raise error
        self._failed[charge_id] = error

    async def _book_each(self, charges: Sequence[Charge]) -> RpcError | None:
        """Book charges one by one: one that billing fails at holds up no other. Returns the last such error.

        Raises RpcError when billing fails at several in a row, or is away.
        """
        failure, in_a_row = None, 0
        for charge in charges:
            error = await self._book(pb.SettleRequest(charges=[charge]))
            failure, in_a_row = error or failure, in_a_row + 1 if error else 0
            if error is not None and in_a_row == FAILURES:
                raise error
        return failure

    async def _book_again(self, charges: Sequence[Charge]) -> None:
        try:
            await self._book_each(charges)
        except RpcError as error:
            # The rest of them has its turn: they are tried in another order then.
            if error.reason != "INTERNAL":
                raise

    async def reap(self, leases: Leases) -> None:
        """Close leases past their expiry, whoever held them, but none that `leases` still spends from.

        A charge that billing fails at keeps its own lease open, and no other. Raises RpcError then.
        """
        failure: RpcError | None = None
        request = pb.ListExpiredLeasesRequest()
        answer = await self._billing.list_expired_leases(request, Call.internal(SETTLE_TIMEOUT_S))
        for lease in answer.leases:
            if leases.is_open(lease.lease_id):
                continue
            try:
                await self._end_lease(lease.lease_id)
            except RpcError as error:
                failure = error
                if error.reason != "INTERNAL":
                    break
        if failure is not None:
            raise failure

    async def _end_lease(self, lease_id: str) -> None:
        await self.settle_lease(lease_id)
        request = pb.CloseLeaseRequest(lease_id=lease_id)
        await self._billing.close_lease(request, Call.internal(SETTLE_TIMEOUT_S))

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
