"""Before and after the provider: plan and reserve, then rate, record and settle."""

from __future__ import annotations

import asyncio
import time

from omnihub.billing.v1.price_pb2 import Price
from omnihub.common.v1.chat_pb2 import Usage

from services.common.ids import new_id
from services.common.rpc import Call, RpcError
from services.common.rpc.errors import to_rpc_error
from services.credits.money import format_nano, limit_nano
from services.credits.rating import bound, provider_cost_of, rate
from services.router.domain.catalogue import Catalogue, Model, Target
from services.router.domain.errors import RoutingError
from services.router.domain.policy import Candidate, Plan
from services.router.journal import Journal, JournalError
from services.router.latency import Latencies
from services.router.leases import Leases
from services.router.metrics import observe
from services.router.planner import Planner
from services.router.prices import Prices, PriceTable, Wanted
from services.router.request import Asked, Request, refusal_record
from services.router.settings import RouterSettings

OBSERVE_AFTER_S = 0.005
# The longest that a provider takes for an answer in the background.
BACKGROUND_HOLD_S = 86_400
REFUSALS_UNDER_WAY = 1000


class Admission:
    """Owns what a request needs around its attempts: catalogue, prices, leases and journal."""

    def __init__(
        self,
        settings: RouterSettings,
        prices: Prices,
        leases: Leases,
        journal: Journal,
        latencies: Latencies,
        planner: Planner,
    ) -> None:
        self.prices = prices
        self._leases = leases
        self._journal = journal
        self.latencies = latencies
        self.planner = planner
        self._baseline: Wanted | None = None
        if settings.baseline_model:
            self._baseline = Target.parse(settings.baseline_model), ""
        self.catalogue = Catalogue({})
        self.configured_at = float(int(time.time()))
        self._endings: set[asyncio.Future[None]] = set()

    async def admit(self, asked: Asked, call: Call) -> Request:
        """Plan a request and reserve what its first candidate may cost.

        Raises routing errors of the domain, and RpcError INSUFFICIENT_CREDITS or IN_FLIGHT_BUDGET_EXHAUSTED.
        """
        plan: Plan | None = None
        try:
            # A person stays with a version; without one each request falls anew.
            unit = asked.chat.user or call.request_id
            planned = await self.planner.plan(asked, call.identity, self.catalogue, unit, self._baseline)
            plan = planned.plan
            amount = plan.chain[0].estimate_nano or 0
            organisation_id = call.identity.organisation_id
            if asked.background:
                # It outlives this process, so what is reserved has to as well.
                reservation = await self._leases.hold_for(organisation_id, amount, BACKGROUND_HOLD_S)
            else:
                reservation = await self._leases.reserve(organisation_id, amount)
        except (RoutingError, RpcError) as refusal:
            self._note_refusal(asked, call, plan or getattr(refusal, "plan", None), refusal)
            raise
        return Request(call, asked, plan, planned.prices, reservation, sticky_key=planned.sticky_key)

    def _note_refusal(
        self, asked: Asked, call: Call, plan: Plan | None, refusal: RoutingError | RpcError
    ) -> None:
        """Record a refusal without anybody waiting for it, and tell its caller where it can be read."""
        if len(self._endings) >= REFUSALS_UNDER_WAY:
            # A flood of refusals must not fill the memory; it is in the log and in the metrics.
            return
        decision_id = new_id("dec")
        record = refusal_record(call, asked, plan, to_rpc_error(refusal), decision_id)
        refusal.metadata = {**refusal.metadata, "decision_id": decision_id}
        written = self._journal.append(record)
        self._endings.add(written)
        written.add_done_callback(self._refused)

    def _refused(self, written: asyncio.Future[None]) -> None:
        self._endings.discard(written)
        # The journal has logged what it could not write.
        written.exception()

    def context_of(self, request: Request, candidate: Candidate) -> int:
        """Return how many tokens a candidate can hold; 0 when that is not known."""
        price = request.prices[candidate.target, candidate.model.priced_as]
        known = price.context_length if price is not None else 0
        return known or candidate.model.context_length

    async def afford(self, request: Request, candidate: Candidate) -> bool:
        """Reserve what `candidate` may cost beyond what is reserved. Tells whether that was possible."""
        more = (candidate.estimate_nano or 0) - request.reservation.amount
        return more <= 0 or await self._leases.extend(request.reservation, more)

    async def afford_rescue(self, request: Request, candidate: Candidate, text_bytes: int) -> bool:
        """Reserve what `candidate` may cost to go on after `text_bytes`, beside what has been spent."""
        price = self._price(request.prices, candidate)
        wanted = request.broken.cost + self._spent(request, text_bytes) + (candidate.estimate_nano or 0)
        wanted += 0 if price is None else bound(text_bytes, 0, price)
        limit = request.asked.chat.max_cost
        if limit and wanted > limit_nano(limit):
            return False
        more = wanted - request.reservation.amount
        return more <= 0 or await self._leases.extend(request.reservation, more)

    def _spent(self, request: Request, produced_bytes: int) -> int:
        """Return what the broken stream of the running attempt has cost, about."""
        request.estimate_usage(produced_bytes)
        price = self._price_of(request)
        return 0 if price is None else rate(request.usage, price)

    def bank(self, request: Request, produced_bytes: int) -> None:
        """Put what a broken stream has cost aside, for another one goes on."""
        cost = self._spent(request, produced_bytes)
        if request.speaker is not None:
            request.speaker.usage.CopyFrom(request.usage)
            request.speaker.cost = format_nano(cost)
            request.broken.reason = request.speaker.reason
        request.broken.add(request.usage, cost)
        request.rescued_from.append(request.target.name)
        request.usage = Usage()

    async def extend(self, request: Request, output_tokens: int) -> bool:
        """Reserve credits for `output_tokens` more tokens. Tells whether that was possible."""
        price = self._price_of(request)
        more = 0 if price is None else bound(0, output_tokens, price)
        limit = request.asked.chat.max_cost
        if limit and request.reservation.amount + more > limit_nano(limit):
            return False
        return more == 0 or await self._leases.extend(request.reservation, more)

    def _price_of(self, request: Request) -> Price | None:
        candidate = request.candidate
        return None if candidate is None else self._price(request.prices, candidate)

    def _price(self, prices: PriceTable, candidate: Candidate) -> Price | None:
        return self.planner.price(prices, (candidate.target, candidate.model.priced_as))

    def output_cap(self, model: Model) -> int:
        """Return the limit of output tokens of a model whose caller names none."""
        return self.planner.output_cap(model)

    def _rate(self, request: Request) -> None:
        """Work out cost and savings from the usage."""
        usage = request.usage
        by_provider = provider_cost_of(usage) is not None
        request.price = price = self._price_of(request)
        own_cost = 0 if price is None else rate(usage, price)
        request.cost_source = "provider" if by_provider else "estimate" if usage.estimated else "price"
        if request.cost_source == "estimate":
            # Nobody pays more for a guess than what was set aside for the answer.
            own_cost = min(own_cost, max(0, request.reservation.amount - request.broken.cost))
        request.include_broken(own_cost)
        usage = request.usage
        baseline = None if self._baseline is None else request.prices[self._baseline]
        if baseline is not None:
            if by_provider:
                usage = Usage()
                usage.CopyFrom(request.usage)
                usage.provider_cost = ""
            request.savings = rate(usage, baseline) - request.cost

    async def conclude(self, request: Request) -> None:
        """Record an answered request durably, then let its reservation go. Before the last byte.

        Raises JournalError. Once begun it runs to its end, also when the caller leaves meanwhile: the
        record may already be on its way to the disk, so its cost counts.
        """
        await asyncio.shield(self.conclude_soon(request))

    def conclude_soon(self, request: Request) -> asyncio.Future[None]:
        """Do the same without waiting, for requests whose caller has gone."""
        self._rate(request)
        return self._record(request)

    async def pend(self, request: Request) -> None:
        """Record an answer that is made in the background: it is paid when it ends. Raises JournalError."""
        request.state, request.pending = "in_progress", True
        request.estimate_usage(0)
        request.price = self._price_of(request)
        request.cost, request.cost_source, request.savings = 0, "", None
        await asyncio.shield(self._record(request))

    def abandon(self, request: Request) -> None:
        """Record a request that produced nothing: it costs nothing."""
        request.cost, request.cost_source, request.savings = 0, "", None
        self._record(request)

    def _record(self, request: Request) -> asyncio.Future[None]:
        request.concluded = True
        written = self._journal.append(request.record())
        self._endings.add(written)
        # Runs before whoever waits goes on.
        written.add_done_callback(lambda _: self._recorded(request, written))
        return written

    def _recorded(self, request: Request, written: asyncio.Future[None]) -> None:
        """Let the reservation go, now and not before: a lease without reservations can be closed any time."""
        self._endings.discard(written)
        failure = written.exception()
        if request.pending and failure is None:
            pass  # What is held for it stays held until it ends.
        elif request.chargeable:
            # A write that failed may still have reached the database: its cost stays out of reach.
            self._leases.spend(request.reservation, request.cost)
        else:
            self._leases.cancel(request.reservation)
        if failure is not None:
            request.state, request.reason = "failed", JournalError.reason
            request.cost, request.savings = 0, None
        if request.state == "complete":
            self.latencies.observe(request.target, request.attempts[-1].latency_ms)
            self.planner.sticky.keep(request.sticky_key, request.target.name)
        # Metrics can wait until the answer has left.
        duration_s = time.monotonic() - request.started
        asyncio.get_running_loop().call_later(OBSERVE_AFTER_S, observe, request, duration_s)

    async def drain(self) -> None:
        """Wait until the record of every ended request is written."""
        while self._endings:
            await asyncio.wait(self._endings)
