"""Limits on the request path: slices of what they leave, spent in memory.

What is in a slice is unavailable everywhere else, so nothing here can go above a limit, whatever the
number of processes. A slice belongs to one window; when the window is over, or nobody uses
it, what is free of it goes back. What was spent is booked from the journal, by the charges that name it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from omnihub.billing.v1 import budget_service_pb2 as pb
from omnihub.billing.v1.budget_service_api import BudgetService
from omnihub.billing.v1.usage_pb2 import Charge
from omnihub.router.v1.router_service_pb2 import RateLimit

from services.common.ids import new_id
from services.common.rpc import Call, RpcError
from services.common.rpc.call import Identity
from services.router.accounting.budget_rules import EVERYONE, BudgetRules
from services.router.accounting.turns import Turns
from services.router.domain.limits import (
    CONCURRENCY,
    Draw,
    Drawn,
    Need,
    OrganisationRules,
    Rule,
    Slice,
    Windows,
    needs_of,
    units_spent,
)
from services.router.repeating import repeat

TIMEOUT_S = 5.0
# Others may draw a slice empty between its grant and the request that asked for it.
TRIES = 5
# A slice is not drawn from when its expiry is nearer than this; a lost second must not matter.
EXPIRY_MARGIN_S = 5.0
RENEW_EVERY_S = 8.0
RETURN_EVERY_S = 1.0
# Unused for this long, what is free of a slice goes back: others may wait for it.
IDLE_S = 2.0
# Unused for this long, a slice is forgotten.
FORGOTTEN_S = 60.0
# How long a refusal stands without asking again: what is used up stays so, what is under way may end.
USED_UP_S = 60.0
IN_FLIGHT_S = 0.1
MICRO = 1_000_000

_logger = logging.getLogger(__name__)
_Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class _Refusal:
    error: RpcError
    lacks: int
    asked_at: float
    stands_until: float


class Budgets:
    """The slices of this process.

    `settle_all` books what journals hold before the slices of the dead end, and returns what it could not.
    """

    def __init__(
        self,
        service: BudgetService,
        rules: Callable[[Callable[[str], None]], BudgetRules],
        holder: str,
        settle_all: Callable[[], Awaitable[Sequence[Charge]]],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = service
        self.rules = rules(self._forget_refusals)
        self._holder = holder
        self._settle_all = settle_all
        self._clock = clock
        self._monotonic = monotonic
        self._windows = Windows()
        self._current: dict[_Key, Slice] = {}
        self._open: dict[str, Slice] = {}
        self._refusals: dict[_Key, _Refusal] = {}
        self._tasks: list[asyncio.Task[None]] = []
        # Two messages about the same slice must not overtake each other.
        self._turns = Turns()

    def rules_for(
        self, known: OrganisationRules, identity: Identity, agent_id: str, run_id: str
    ) -> list[Rule]:
        """Return the rules of all scopes of a request."""
        return known.applicable(
            (
                ("organisation", identity.organisation_id),
                ("workspace", identity.workspace_id),
                ("project", identity.project_id),
                ("key", identity.key_id),
                ("agent", agent_id),
                ("run", run_id),
            )
        )

    async def reserve(self, organisation_id: str, rules: Sequence[Rule], nano: int, tokens: int) -> Drawn:
        """Reserve what a request may use of every rule.

        Raises RpcError ESTIMATE_EXCEEDS_BUDGET, BUDGET_LIMIT, IN_FLIGHT_BUDGET_EXHAUSTED, RATE_LIMITED or
        UNAVAILABLE.
        """
        at = int(self._clock() * MICRO)
        needs = needs_of(rules, nano, tokens)
        drawn = self._draw(needs, at) or await self._acquire(organisation_id, needs, at)
        if len(needs) < len(rules):
            needed = {rule.limit_id for rule, _ in needs}
            drawn.organisation_id = organisation_id
            drawn.unused = [rule for rule in rules if rule.limit_id not in needed]
        return drawn

    def _draw(self, needs: Sequence[Need], at: int) -> Drawn | None:
        now, current, window_of = self._monotonic(), self._current, self._windows.of
        draws = []
        for rule, amount in needs:
            found = current.get((rule.limit_id, window_of(rule.window, at)[0]))
            if found is None or not _can_give(found, amount, now):
                return None
            draws.append(Draw(found, amount))
        for draw in draws:
            each = draw.slice
            each.reserved += draw.amount
            each.used_at = now
        return Drawn(at, draws)

    async def _acquire(self, organisation_id: str, needs: Sequence[Need], at: int) -> Drawn:
        async with self._turns.of(organisation_id):
            for _ in range(TRIES):
                drawn = self._draw(needs, at)
                if drawn is not None:
                    return drawn
                now = self._monotonic()
                slices = [(self._slice(rule, organisation_id, at), amount) for rule, amount in needs]
                lacking = [(each, amount) for each, amount in slices if not _can_give(each, amount, now)]
                self._refuse_again(lacking, now)
                await self._raise(lacking, at)
        raise RpcError("UNAVAILABLE", "billing grants slices that expire at once; raise lease_ttl_s")

    def _slice(self, rule: Rule, organisation_id: str, at: int) -> Slice:
        start, end = self._windows.of(rule.window, at)
        found = self._current.get((rule.limit_id, start))
        if found is None:
            found = Slice(new_id("slice"), rule, organisation_id, start, end)
            found.used_at = self._monotonic()
            self._current[rule.limit_id, start] = found
            self._open[found.slice_id] = found
        return found

    def _refuse_again(self, lacking: Sequence[tuple[Slice, int]], now: float) -> None:
        """Say again what billing has said a moment ago. Raises RpcError."""
        for each, amount in lacking:
            refusal = self._refusals.get((each.rule.limit_id, each.window_start))
            if refusal is not None and now < refusal.stands_until and amount - each.free >= refusal.lacks:
                error, passed = refusal.error, now - refusal.asked_at
                wait_s = None if error.retry_after_s is None else max(0.0, error.retry_after_s - passed)
                raise RpcError(error.reason, error.message, metadata=error.metadata, retry_after_s=wait_s)

    async def _raise(self, lacking: Sequence[tuple[Slice, int]], at: int) -> None:
        """Have slices raised so that each can give an amount. Raises RpcError."""
        request = pb.AcquireSlicesRequest(organisation_id=lacking[0][0].organisation_id, holder=self._holder)
        request.at.FromMicroseconds(at)
        for each, amount in lacking:
            request.slices.add(
                slice_id=each.slice_id,
                limit_id=each.rule.limit_id,
                need=amount,
                minimum_total=each.kept + amount,
                spent_total=each.spent,
            )
        asked_at = self._monotonic()
        try:
            asked = self._service.acquire_slices(request, Call.internal(TIMEOUT_S))
            answer = await self._turns.ask(request.organisation_id, asked)
        except RpcError as error:
            await self._refused(error, lacking, asked_at)
            return
        for told in answer.slices:
            raised = self._open.get(told.slice_id)
            if raised is not None:
                raised.granted, raised.available = told.granted_total, told.available
                raised.expires_at = asked_at + answer.expires_in_s

    async def _refused(self, error: RpcError, lacking: Sequence[tuple[Slice, int]], asked_at: float) -> None:
        """Take in a refusal. Returns when asking again makes sense, raises it otherwise."""
        organisation_id = lacking[0][0].organisation_id
        if error.reason == "PRECONDITION_FAILED":
            # Closed while this process was not heard of; its charges count all the same.
            for each, _ in lacking:
                self._lose(each)
            raise RpcError("UNAVAILABLE", "a slice of a limit was lost; retry", retry_after_s=1) from error
        if error.reason == "NOT_FOUND":
            await self.rules.reload([organisation_id])
            raise RpcError("UNAVAILABLE", "a limit has just been removed; retry", retry_after_s=1) from error
        for each, amount in lacking:
            if each.rule.limit_id == error.metadata.get("limit_id"):
                used_up = error.metadata.get("used_up") == "true"
                stands = min(USED_UP_S, error.retry_after_s or USED_UP_S) if used_up else IN_FLIGHT_S
                key = each.rule.limit_id, each.window_start
                self._refusals[key] = _Refusal(error, amount - each.free, asked_at, asked_at + stands)
        raise error

    async def extend(self, drawn: Drawn, nano: int, tokens: int) -> bool:
        """Reserve more for a running request. Tells whether that was possible."""
        units = units_spent(nano, tokens)
        # What a free candidate did not need, the next one may.
        added = [
            Draw(self._slice(rule, drawn.organisation_id, drawn.at), 0)
            for rule in drawn.unused
            if units[rule.measure]
        ]
        wanted = [(draw, units[draw.slice.rule.measure]) for draw in (*drawn.draws, *added)]
        wanted = [(draw, more) for draw, more in wanted if more and draw.slice.rule.measure != "requests"]
        for _ in range(TRIES):
            now = self._monotonic()
            lacking = [(draw.slice, more) for draw, more in wanted if not _can_give(draw.slice, more, now)]
            if not lacking:
                for draw, more in wanted:
                    draw.slice.reserved += more
                    draw.amount += more
                if added:
                    names = {draw.slice.rule.limit_id for draw in added}
                    drawn.draws.extend(added)
                    drawn.unused = [rule for rule in drawn.unused if rule.limit_id not in names]
                return True
            try:
                async with self._turns.of(lacking[0][0].organisation_id):
                    await self._raise(lacking, drawn.at)
            except RpcError as error:
                _logger.info("limit_not_extended %s", error.reason)
                return False
        return False

    def shrink(self, drawn: Drawn, nano: int, tokens: int) -> None:
        """Undo `extend`."""
        units = units_spent(nano, tokens)
        for draw in drawn.draws:
            more = units[draw.slice.rule.measure]
            if draw.slice.rule.measure != "requests":
                draw.slice.reserved -= more
                draw.amount -= more

    def spend(self, drawn: Drawn, nano: int, tokens: int) -> None:
        """Turn what is reserved into what was used. The charge itself goes through the journal."""
        now, units = self._monotonic(), units_spent(nano, tokens)
        for draw in drawn.draws:
            each = draw.slice
            each.reserved -= draw.amount
            each.spent += units[each.rule.measure]
            each.used_at = now

    def free_slots(self, drawn: Drawn) -> None:
        """Give back slots of concurrency alone."""
        for draw in drawn.draws:
            if draw.slice.rule.measure == CONCURRENCY:
                draw.slice.reserved -= draw.amount
                draw.amount = 0

    def cancel(self, drawn: Drawn) -> None:
        """Give everything back unspent."""
        for draw in drawn.draws:
            draw.slice.reserved -= draw.amount

    def rate_limits(self, drawn: Drawn) -> list[RateLimit]:
        """Return what the tightest limits per minute leave, as far as this process knows."""
        tightest: dict[str, RateLimit] = {}
        for draw in drawn.draws:
            found, rule = draw.slice, draw.slice.rule
            if found.window_end is None or rule.window != "minute" or rule.measure == "credits":
                continue
            limit = RateLimit(
                measure=rule.measure,
                limit=rule.amount,
                remaining=max(0, found.free + found.available),
                resets_in_ms=max(0, (found.window_end - drawn.at) // 1000),
            )
            known = tightest.get(rule.measure)
            if known is None or limit.remaining < known.remaining:
                tightest[rule.measure] = limit
        return list(tightest.values())

    def _forget_refusals(self, organisation_id: str) -> None:
        """Limits have changed: ask again, and draw no more from slices of limits that are gone."""
        for key, found in list(self._current.items()):
            if organisation_id in (EVERYONE, found.organisation_id):
                self._refusals.pop(key, None)
                known = self.rules.of(found.organisation_id)
                subject = found.rule.scope, found.rule.scope_id
                if known is None or found.rule not in known.by_subject.get(subject, ()):
                    # Another amount means another rule: what is reserved still runs, nothing new does.
                    self._replace(key, found, known)

    def _replace(self, key: _Key, found: Slice, known: OrganisationRules | None) -> None:
        subject = found.rule.scope, found.rule.scope_id
        rules = () if known is None else known.by_subject.get(subject, ())
        same = [rule for rule in rules if rule.limit_id == found.rule.limit_id]
        if same:
            found.rule = same[0]
        else:
            del self._current[key]
        # Free parts go back with the next look: a lowered limit must not be spent from old slices.
        found.used_at = 0.0

    def _lose(self, lost: Slice) -> None:
        self._open.pop(lost.slice_id, None)
        self._retire(lost)

    async def return_free(self) -> None:
        """Return what nobody uses, of this and of past windows. Call it every RETURN_EVERY_S seconds."""
        at, now = int(self._clock() * MICRO), self._monotonic()
        self._refusals = {key: each for key, each in self._refusals.items() if now < each.stands_until}
        for organisation_id in {each.organisation_id for each in self._open.values()}:
            async with self._turns.of(organisation_id):
                mine = [each for each in self._open.values() if each.organisation_id == organisation_id]
                await self._return([each for each in mine if self._is_idle(each, at, now)])

    def _is_idle(self, each: Slice, at: int, now: float) -> bool:
        """Tell whether part of a slice is to go back, and forget it once nothing of it is left to do."""
        current = self._current.get((each.rule.limit_id, each.window_start)) is each
        over = each.is_over(at) or not current
        if each.free > 0:
            return over or now - each.used_at > IDLE_S
        if each.reserved == 0 and (over or now - each.used_at > FORGOTTEN_S):
            self._lose(each)
        return False

    async def _return(self, slices: Sequence[Slice]) -> None:
        if not slices:
            return
        request = pb.ReturnSlicesRequest()
        for each in slices:
            # At once, so that nobody draws it meanwhile.
            each.granted = each.kept
            request.slices.add(slice_id=each.slice_id, granted_total=each.granted)
        try:
            asked = self._service.return_slices(request, Call.internal(TIMEOUT_S))
            await self._turns.ask(slices[0].organisation_id, asked)
        except RpcError:
            # It may still be on its way: these slices must not be raised again behind it.
            for each in slices:
                self._retire(each)
            raise

    def _retire(self, each: Slice) -> None:
        """Let nothing new draw from a slice; what runs goes on."""
        key = each.rule.limit_id, each.window_start
        if self._current.get(key) is each:
            del self._current[key]

    async def renew(self) -> None:
        """Keep slices alive. Call it every RENEW_EVERY_S seconds."""
        if not self._open:
            return
        now = self._monotonic()
        request = pb.RenewSlicesRequest(slice_ids=list(self._open))
        answer = await self._service.renew_slices(request, Call.internal(TIMEOUT_S))
        renewed = set(answer.renewed_slice_ids)
        for slice_id in request.slice_ids:
            found = self._open.get(slice_id)
            if found is None:
                continue
            if slice_id in renewed:
                found.expires_at = max(found.expires_at, now + answer.expires_in_s)
            elif found.granted:
                _logger.warning("slice_lost %s", slice_id)
                self._lose(found)

    async def reap(self) -> None:
        """Free what processes that died have left, once their charges are booked."""
        answer = await self._service.list_expired_slices(
            pb.ListExpiredSlicesRequest(), Call.internal(TIMEOUT_S)
        )
        due = [slice_id for slice_id in answer.slice_ids if slice_id not in self._open]
        if not due:
            return
        # What billing fails at keeps its own slices, and no others.
        awaited = {slice_id for charge in await self._settle_all() for slice_id in charge.slice_ids}
        if due := [slice_id for slice_id in due if slice_id not in awaited]:
            request = pb.CloseSlicesRequest(slice_ids=due)
            await self._service.close_slices(request, Call.internal(TIMEOUT_S))

    def start(self) -> None:
        """Start the loops."""
        loops = [
            (self.return_free, RETURN_EVERY_S),
            (self.renew, RENEW_EVERY_S),
            (self.reap, RENEW_EVERY_S),
        ]
        self._tasks = [asyncio.create_task(repeat(work, interval)) for work, interval in loops]

    async def stop(self) -> None:
        """Stop the loops. Call `close` before."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """Return everything that no request uses."""
        self._current.clear()
        await self._return(list(self._open.values()))


def _can_give(each: Slice, amount: int, now: float) -> bool:
    # `free`, spelled out: this is asked for each limit of each request.
    return each.granted - each.reserved - each.spent >= amount and now < each.expires_at - EXPIRY_MARGIN_S
