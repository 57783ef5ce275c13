"""Credits on the request path: a slice of what is available, spent in memory.

What is leased is unavailable everywhere else, so nothing here can overspend. A lease is at least four
times the estimate of the request that needs it; when less is available, the request gets a
hold of its own. Both end in billing: charges are settled against them from the journal.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from omnihub.billing.v1 import billing_service_pb2 as pb
from omnihub.billing.v1.billing_service_api import BillingService

from services.common.crash import CrashPoints
from services.common.ids import new_id
from services.common.rpc import Call, RpcError
from services.router.accounting.turns import Turns
from services.router.domain.limits import Drawn

LEASE_FACTOR = 4
# Requests that come while a lease is being granted may draw it empty before the one that asked for it.
LEASE_TRIES = 5
# One lease takes at most this part of what is available, within the settings' limits.
SHARE = 100
# The shortest a hold lives without being renewed; `reserve` is told how long an attempt may take.
HOLD_TTL_S = 120
# A hold is renewed when less than this part of its life is left.
RENEW_HOLD_AT = 0.5
BILLING_TIMEOUT_S = 5.0
# What billing allows.
LONGEST_HOLD_S = 86_400
# A lease is not spent from when its expiry is nearer than this; a lost second must not matter.
EXPIRY_MARGIN_S = 5.0
# Near the limit, requests of an organisation that billing is asked about at the same time.
HOLDS_AT_ONCE = 8
# For so long billing is not asked again what it has just refused: a crowd must not become a queue.
REFUSED_S = 0.1
RENEW_EVERY_S = 8.0
# Unused for this long, a lease goes back.
IDLE_S = 20.0
# Nobody who waits for an idle lease to be returned has waited so long: calls of billing end before.
RETURNS_KEPT_S = 60.0
# Of so many organisations is kept how much they had, for the size of their next lease.
ORGANISATIONS = 10_000

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Lease:
    """A slice of an organisation's credits that this process may spend."""

    lease_id: str
    organisation_id: str
    granted: int
    expires_at: float
    reserved: int = 0
    spent: int = 0
    used_at: float = field(default_factory=time.monotonic)

    @property
    def free(self) -> int:
        """Return what a new request can reserve, in nano-credits."""
        return self.granted - self.reserved - self.spent

    def can_give(self, amount: int) -> bool:
        """Tell whether `amount` can be reserved from it now."""
        return self.free >= amount and time.monotonic() < self.expires_at - EXPIRY_MARGIN_S


@dataclass(slots=True)
class Reservation:
    """What one request may spend at the most, and where from."""

    organisation_id: str
    amount: int
    lease: Lease | None = None
    hold_id: str = ""
    hold_ttl_s: int = HOLD_TTL_S
    hold_expires_at: float = 0.0
    """On the clock of `time.monotonic()`."""
    outlives: bool = False
    """Its request outlives this process: it is never a part of a lease, and nothing here renews it."""
    drawn: Drawn | None = None
    """What the request has reserved of limits."""

    @property
    def lease_id(self) -> str:
        """Return the lease's id, or an empty string."""
        return self.lease.lease_id if self.lease is not None else ""


@dataclass(frozen=True, slots=True)
class _Refusal:
    """What billing has said to `amount`, and until when that need not be asked again."""

    error: RpcError
    amount: int
    until: float


def _told_again(refusals: dict[str, _Refusal], organisation_id: str, amount: int) -> RpcError | None:
    """Return what billing has said a moment ago to so little or less."""
    refusal = refusals.get(organisation_id)
    if refusal is None:
        return None
    if time.monotonic() >= refusal.until:
        del refusals[organisation_id]
        return None
    return refusal.error if amount >= refusal.amount else None


class Leases:
    """The leases of this process. `settle_lease` books what a lease still owes before it is closed."""

    def __init__(
        self,
        billing: BillingService,
        holder: str,
        minimum: int,
        maximum: int,
        settle_lease: Callable[[str], Awaitable[None]],
        *,
        slices: bool = True,
        crash: CrashPoints | None = None,
    ) -> None:
        self._slices = slices
        self._crash = crash or CrashPoints()
        self._billing = billing
        self._holder = holder
        self._minimum = minimum
        self._maximum = maximum
        self._settle_lease = settle_lease
        self._current: dict[str, Lease] = {}
        self._open: dict[str, Lease] = {}
        self._holds: dict[str, Reservation] = {}
        self._available: dict[str, int] = {}
        self._refusals: dict[str, _Refusal] = {}
        self._lease_refusals: dict[str, _Refusal] = {}
        self._leasing = Turns()
        self._holding = Turns(HOLDS_AT_ONCE)
        self._closing: dict[str, asyncio.Task[None]] = {}
        self._returned_at: dict[str, float] = {}
        # The event loop keeps only weak references to tasks.
        self._background: set[asyncio.Task[Any]] = set()

    def is_open(self, lease_id: str) -> bool:
        """Tell whether this process still spends from a lease."""
        return lease_id in self._open

    async def reserve(self, organisation_id: str, amount: int, hold_ttl_s: int = HOLD_TTL_S) -> Reservation:
        """Reserve `amount` nano-credits for one request.

        A hold of its own lives for `hold_ttl_s`, and is renewed for as long as the request runs.

        Raises RpcError INSUFFICIENT_CREDITS, IN_FLIGHT_BUDGET_EXHAUSTED or UNAVAILABLE.
        """
        if amount == 0:
            return Reservation(organisation_id, 0)
        if not self._slices:
            self._refuse_again(organisation_id, amount)
            return await self._hold(organisation_id, amount, hold_ttl_s)
        return self._draw(organisation_id, amount) or await self._acquire(organisation_id, amount, hold_ttl_s)

    def _draw(self, organisation_id: str, amount: int) -> Reservation | None:
        lease = self._current.get(organisation_id)
        if lease is None or not lease.can_give(amount):
            return None
        lease.reserved += amount
        lease.used_at = time.monotonic()
        return Reservation(organisation_id, amount, lease)

    async def _acquire(self, organisation_id: str, amount: int, hold_ttl_s: int) -> Reservation:
        leased = await self._lease_for(organisation_id, amount)
        if leased is not None:
            return leased
        async with self._holding.of(organisation_id):
            self._refuse_again(organisation_id, amount)
            return await self._hold(organisation_id, amount, hold_ttl_s)

    async def _lease_for(self, organisation_id: str, amount: int) -> Reservation | None:
        """Draw from a new lease. Returns nothing when billing has too little for one. Raises RpcError."""
        async with self._leasing.of(organisation_id):
            drawn = self._draw(organisation_id, amount)
            if drawn is not None:
                return drawn
            self._refuse_again(organisation_id, amount)
            if _told_again(self._lease_refusals, organisation_id, LEASE_FACTOR * amount):
                return None
            share = self._available.get(organisation_id, 0) // SHARE
            wanted = max(LEASE_FACTOR * amount, min(max(share, self._minimum), self._maximum))
            for _ in range(LEASE_TRIES):
                try:
                    lease = self._lease(organisation_id, wanted, LEASE_FACTOR * amount)
                    await asyncio.shield(self._spawn(lease))
                except RpcError as error:
                    if error.row.http != 402:
                        raise
                    until = time.monotonic() + REFUSED_S
                    refusal = _Refusal(error, LEASE_FACTOR * amount, until)
                    self._lease_refusals[organisation_id] = refusal
                    return None
                drawn = self._draw(organisation_id, amount)
                if drawn is not None:
                    return drawn
        raise RpcError("UNAVAILABLE", "billing grants leases that expire at once; raise lease_ttl_s")

    def _refuse_again(self, organisation_id: str, amount: int) -> None:
        """Say again what billing has said a moment ago of so little or less. Raises RpcError."""
        told = _told_again(self._refusals, organisation_id, amount)
        if told is not None:
            raise RpcError(
                told.reason, told.message, metadata=told.metadata, retry_after_s=told.retry_after_s
            )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start `work` on its own: it runs on when a caller leaves, so that no grant is forgotten."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled():
            # Whoever still waited for it has been told.
            task.exception()

    async def _lease(self, organisation_id: str, wanted: int, minimum: int) -> None:
        request = pb.AcquireLeaseRequest(
            lease_id=new_id("lease"),
            organisation_id=organisation_id,
            holder=self._holder,
            wanted_nano_credits=wanted,
            minimum_nano_credits=minimum,
        )
        asked_at = time.monotonic()
        asked = self._billing.acquire_lease(request, Call.internal(BILLING_TIMEOUT_S))
        answer = await self._leasing.ask(organisation_id, asked)
        self._crash.pass_by("after_lease_grant")
        lease = Lease(
            request.lease_id,
            organisation_id,
            answer.granted_nano_credits,
            asked_at + answer.expires_in_s,
        )
        self._open[lease.lease_id] = lease
        self._current[organisation_id] = lease
        self._available.pop(organisation_id, None)
        self._available[organisation_id] = answer.available_nano_credits
        if len(self._available) > ORGANISATIONS:
            del self._available[next(iter(self._available))]

    async def _hold(self, organisation_id: str, amount: int, hold_ttl_s: int) -> Reservation:
        """Reserve for this one request at billing."""
        reservation = Reservation(
            organisation_id, amount, hold_id=new_id("hold"), hold_ttl_s=min(hold_ttl_s, LONGEST_HOLD_S)
        )
        created = self._spawn(self._create_hold(reservation))
        try:
            await asyncio.shield(created)
        except asyncio.CancelledError:
            created.add_done_callback(lambda _: self.cancel(reservation))
            raise
        return reservation

    async def _create_hold(self, reservation: Reservation) -> None:
        try:
            await self._ask_for_hold(reservation)
        except RpcError as error:
            if error.row.http == 402:
                until = time.monotonic() + REFUSED_S
                self._refusals[reservation.organisation_id] = _Refusal(error, reservation.amount, until)
            raise

    async def _ask_for_hold(self, reservation: Reservation) -> None:
        request = pb.CreateHoldRequest(
            hold_id=reservation.hold_id,
            organisation_id=reservation.organisation_id,
            amount_nano_credits=reservation.amount,
            ttl_s=reservation.hold_ttl_s,
        )
        asked_at = time.monotonic()
        organisation_id = reservation.organisation_id
        try:
            asked = self._billing.create_hold(request, Call.internal(BILLING_TIMEOUT_S))
            await self._holding.ask(organisation_id, asked)
        except RpcError as error:
            # What is missing may lie in a lease of this very process.
            if error.row.http != 402 or not await self._return_idle(organisation_id, asked_at):
                raise
            # A refused id stays refused.
            reservation.hold_id = request.hold_id = new_id("hold")
            await self._billing.create_hold(request, Call.internal(BILLING_TIMEOUT_S))
        self._crash.pass_by("after_hold_grant")
        reservation.hold_expires_at = asked_at + reservation.hold_ttl_s
        self._holds[reservation.hold_id] = reservation

    async def hold_for(self, organisation_id: str, amount: int, ttl_s: int) -> Reservation:
        """Reserve at billing for a request that outlives this process. Raises as `reserve` does."""
        if amount == 0:
            return Reservation(organisation_id, 0, hold_ttl_s=ttl_s, outlives=True)
        reservation = await self._hold(organisation_id, amount, ttl_s)
        # Nothing here renews it: it ends with its charge, or by itself.
        self._holds.pop(reservation.hold_id, None)
        reservation.outlives = True
        return reservation

    async def extend(self, reservation: Reservation, amount: int) -> bool:
        """Reserve `amount` more for a running request. Tells whether that was possible."""
        lease, total = reservation.lease, reservation.amount + amount
        try:
            if reservation.hold_id:
                await self._extend_hold(reservation, total)
            elif lease is not None and self.is_open(lease.lease_id) and lease.can_give(amount):
                lease.reserved += amount
            else:
                reserve = self.hold_for if reservation.outlives else self.reserve
                larger = await reserve(reservation.organisation_id, total, reservation.hold_ttl_s)
                if lease is not None:
                    lease.reserved -= reservation.amount
                self._take_over(reservation, larger)
        except RpcError as error:
            _logger.info("reservation_not_extended %s", error.reason)
            return False
        reservation.amount = total
        return True

    def _take_over(self, reservation: Reservation, larger: Reservation) -> None:
        """Let a running request go on with another reservation of its credits."""
        reservation.lease, reservation.hold_id = larger.lease, larger.hold_id
        reservation.hold_expires_at = larger.hold_expires_at
        if larger.hold_id and not larger.outlives:
            self._holds[larger.hold_id] = reservation

    async def _extend_hold(self, reservation: Reservation, amount: int) -> None:
        request = pb.ExtendHoldRequest(
            hold_id=reservation.hold_id, amount_nano_credits=amount, ttl_s=reservation.hold_ttl_s
        )
        asked_at = time.monotonic()
        await self._billing.extend_hold(request, Call.internal(BILLING_TIMEOUT_S))
        reservation.hold_expires_at = asked_at + reservation.hold_ttl_s

    def spend(self, reservation: Reservation, cost: int) -> None:
        """Turn a reservation into a cost. The charge itself goes through the journal."""
        self._holds.pop(reservation.hold_id, None)
        lease = reservation.lease
        if lease is not None:
            lease.reserved -= reservation.amount
            lease.spent += cost
            lease.used_at = time.monotonic()

    def cancel(self, reservation: Reservation) -> None:
        """Give a reservation back unspent; a hold is released in the background."""
        self.spend(reservation, 0)
        if reservation.hold_id:
            self._spawn(self._release(reservation.hold_id))

    async def _release(self, hold_id: str) -> None:
        request = pb.ReleaseHoldRequest(hold_id=hold_id)
        try:
            await self._billing.release_hold(request, Call.internal(BILLING_TIMEOUT_S))
        except RpcError as error:
            _logger.info("hold_left_to_expire %s %s", hold_id, error.reason)

    async def maintain(self) -> None:
        """Renew leases in use, return idle and replaced ones. Call it every RENEW_EVERY_S seconds."""
        self._forget_old()
        await self._renew_holds()
        await self._renew()
        failure = await self._close_unused(self._is_idle)
        if failure is not None:
            raise failure

    def _forget_old(self) -> None:
        """Forget what says nothing any more of organisations that may never ask again."""
        now = time.monotonic()
        for refusals in (self._refusals, self._lease_refusals):
            for organisation_id in [key for key, each in refusals.items() if now >= each.until]:
                del refusals[organisation_id]
        for organisation_id in [key for key, at in self._returned_at.items() if now > at + RETURNS_KEPT_S]:
            del self._returned_at[organisation_id]

    def _is_idle(self, lease: Lease) -> bool:
        replaced = self._current.get(lease.organisation_id) is not lease
        return replaced or time.monotonic() - lease.used_at > IDLE_S

    async def _renew_holds(self) -> None:
        """Keep holds alive while their requests run, however many candidates they ask."""
        now = time.monotonic()
        for reservation in list(self._holds.values()):
            if reservation.hold_expires_at - now < RENEW_HOLD_AT * reservation.hold_ttl_s:
                try:
                    await self._extend_hold(reservation, reservation.amount)
                except RpcError as error:
                    _logger.warning("hold_not_renewed %s %s", reservation.hold_id, error.reason)

    async def _renew(self) -> None:
        if not self._open:
            return
        now = time.monotonic()
        request = pb.RenewLeasesRequest(lease_ids=list(self._open))
        answer = await self._billing.renew_leases(request, Call.internal(BILLING_TIMEOUT_S))
        for lease_id in set(request.lease_ids) - set(answer.renewed_lease_ids):
            _logger.warning("lease_lost %s", lease_id)
            self._forget(self._open.pop(lease_id, None))
        for lease_id in answer.renewed_lease_ids:
            if lease_id in self._open:
                self._open[lease_id].expires_at = now + answer.expires_in_s

    async def _return_idle(self, organisation_id: str, since: float) -> bool:
        """Return the leases of an organisation that no request uses. Tells whether any went since then."""
        failure = await self._close_unused(lambda lease: lease.organisation_id == organisation_id)
        if failure is not None:
            _logger.warning("leases_not_returned %s %s", organisation_id, failure)
        return self._returned_at.get(organisation_id, 0.0) >= since

    async def close(self) -> None:
        """Return every lease that no request uses."""
        while self._background:
            await asyncio.wait(self._background)
        failure = await self._close_unused(lambda lease: True)
        if failure is not None:
            raise failure

    async def _close_unused(self, is_due: Callable[[Lease], bool]) -> RpcError | None:
        """Close leases that no request uses. Returns the last failure.

        A charge that billing fails at keeps its own lease open, and no other.
        """
        failure = None
        for lease in list(self._open.values()):
            # Asked when its turn comes: a request may have drawn from it while another one was closed.
            if lease.reserved == 0 and self.is_open(lease.lease_id) and is_due(lease):
                try:
                    await self._close(lease)
                except RpcError as error:
                    failure = error
                    if error.reason != "INTERNAL":
                        break
        return failure

    async def _close(self, lease: Lease) -> None:
        """Close a lease. Who wants the same meanwhile waits for that."""
        # Nobody may draw from it while its charges are being settled.
        self._forget(lease)
        closing = self._closing.get(lease.lease_id)
        if closing is None:
            closing = self._closing[lease.lease_id] = self._spawn(self._settle_and_close(lease))
            closing.add_done_callback(lambda _: self._closing.pop(lease.lease_id))
        await asyncio.shield(closing)

    async def _settle_and_close(self, lease: Lease) -> None:
        await self._settle_lease(lease.lease_id)
        request = pb.CloseLeaseRequest(lease_id=lease.lease_id)
        self._crash.pass_by("before_lease_close")
        await self._billing.close_lease(request, Call.internal(BILLING_TIMEOUT_S))
        self._open.pop(lease.lease_id, None)
        self._returned_at[lease.organisation_id] = time.monotonic()

    def _forget(self, lease: Lease | None) -> None:
        if lease is not None and self._current.get(lease.organisation_id) is lease:
            del self._current[lease.organisation_id]
