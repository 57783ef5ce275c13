"""Before and after the provider: plan and reserve, then rate, record and settle."""

from __future__ import annotations

import asyncio
import time

from omnihub.billing.v1.price_pb2 import Price
from omnihub.common.v1.chat_pb2 import Usage
from omnihub.router.v1.router_service_pb2 import RateLimit

from services.common.ids import new_id
from services.common.rpc import Call, RpcError
from services.common.rpc.call import Identity
from services.common.rpc.errors import to_rpc_error
from services.credits.money import format_nano, limit_nano
from services.credits.rating import Rated, bound, provider_cost_of, sell_of
from services.credits.savings import savings_of
from services.router.budgets import Budgets
from services.router.domain.catalogue import Catalogue, Model, Target
from services.router.domain.errors import RoutingError
from services.router.domain.estimate import LARGEST, input_bound
from services.router.domain.limits import OrganisationRules
from services.router.domain.policy import Candidate, Plan
from services.router.journal import Journal, JournalError
from services.router.latency import Latencies
from services.router.leases import HOLD_TTL_S, Leases, Reservation
from services.router.metrics import observe
from services.router.planner import Planner
from services.router.prices import Prices, Wanted
from services.router.request import Asked, Request, refusal_record
from services.router.settings import RouterSettings

OBSERVE_AFTER_S = 0.005
MICRO = 1_000_000
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
        budgets: Budgets | None = None,
    ) -> None:
        self.prices = prices
        self._leases = leases
        self._budgets = budgets
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

        Raises routing errors of the domain, and RpcError INSUFFICIENT_CREDITS, IN_FLIGHT_BUDGET_EXHAUSTED,
        ESTIMATE_EXCEEDS_BUDGET, BUDGET_LIMIT or RATE_LIMITED.
        """
        plan: Plan | None = None
        budget = self.budget_of(call.identity)
        try:
            # A person stays with a version; without one each request falls anew.
            unit = asked.chat.user or call.request_id
            planned = await self.planner.plan(asked, call.identity, self.catalogue, unit, self._baseline)
            plan = planned.plan
            reservation = await self._reserve(asked, call, plan, budget)
        except (RoutingError, RpcError) as refusal:
            self._note_refusal(asked, call, plan or getattr(refusal, "plan", None), refusal)
            raise
        request = Request(call, asked, plan, planned.prices, reservation, sticky_key=planned.sticky_key)
        if reservation.drawn is not None:
            # The moment that decided the windows of its limits is the one its charge is booked at.
            request.started_at = reservation.drawn.at / MICRO
            request.rate_limits = self.rate_limits(request)
        return request

    def budget_of(self, identity: Identity) -> OrganisationRules | None:
        """Return the limits and the plan of who asks; None when there are none."""
        return None if self._budgets is None else self._budgets.rules.of(identity.organisation_id)

    async def _reserve(
        self, asked: Asked, call: Call, chosen: Plan, budget: OrganisationRules | None
    ) -> Reservation:
        """Reserve what the first candidate may use, of every limit and of the credits."""
        first, identity = chosen.chain[0], call.identity
        amount = first.estimate_nano or 0
        drawn = None
        if budget is not None and self._budgets is not None:
            rules = self._budgets.rules_for(budget, identity, asked.chat.agent_id, asked.chat.run_id)
            if rules:
                tokens = self._tokens_bound(asked, first)
                drawn = await self._budgets.reserve(identity.organisation_id, rules, amount, tokens)
        try:
            ttl_s = max(candidate.model.settings.timeouts.total_s for candidate in chosen.chain)
            reservation = await self._leases.reserve(
                identity.organisation_id, amount, int(ttl_s) + HOLD_TTL_S
            )
        except BaseException:
            if drawn is not None and self._budgets is not None:
                self._budgets.cancel(drawn)
            raise
        reservation.drawn = drawn
        return reservation

    def _tokens_bound(self, asked: Asked, candidate: Candidate) -> int:
        """Return the most tokens a request can have, in and out."""
        tokens = input_bound(asked.raw_body, asked.chat) + self.planner.output_bound(asked, candidate.model)
        return min(LARGEST, tokens)

    async def reserve_more(self, request: Request, nano: int, tokens: int = 0) -> bool:
        """Reserve more of the credits and of every limit. Tells whether that was possible."""
        drawn = request.reservation.drawn
        if drawn is None or self._budgets is None:
            return nano == 0 or await self._leases.extend(request.reservation, nano)
        if not await self._budgets.extend(drawn, nano, tokens):
            return False
        if nano == 0 or await self._leases.extend(request.reservation, nano):
            return True
        self._budgets.shrink(drawn, nano, tokens)
        return False

    def rate_limits(self, request: Request) -> list[RateLimit]:
        """Return what limits per minute leave to the caller; empty without any."""
        drawn = request.reservation.drawn
        return [] if drawn is None or self._budgets is None else self._budgets.rate_limits(drawn)

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
        return more <= 0 or await self.reserve_more(request, more)

    async def afford_rescue(self, request: Request, candidate: Candidate, text_bytes: int) -> bool:
        """Reserve what `candidate` may cost to go on after `text_bytes`, beside what has been spent."""
        price = request.prices[candidate.target, candidate.model.priced_as]
        spent = self._rated(request, text_bytes).sell
        wanted = request.broken.cost + spent + (candidate.estimate_nano or 0)
        wanted += 0 if price is None else bound(text_bytes, 0, price, request.margin_for(candidate.target))
        limit = request.asked.chat.max_cost
        if limit and wanted > limit_nano(limit):
            return False
        more = wanted - request.reservation.amount
        return more <= 0 or await self.reserve_more(request, more)

    def _rated(self, request: Request, produced_bytes: int) -> Rated:
        """Return what the broken stream of the running attempt has cost, about."""
        request.estimate_usage(produced_bytes)
        price = self._price_of(request)
        return sell_of(request.usage, price or Price(), request.margin)

    def bank(self, request: Request, produced_bytes: int) -> None:
        """Put what a broken stream has cost aside, for another one goes on."""
        rated = self._rated(request, produced_bytes)
        if request.speaker is not None:
            request.speaker.usage.CopyFrom(request.usage)
            request.speaker.cost = format_nano(rated.sell)
            request.broken.reason = request.speaker.reason
        request.price = self._price_of(request)
        request.broken.add(request.part(rated, None), request.usage)
        request.rescued_from.append(request.target.name)
        request.usage = Usage()

    async def extend(self, request: Request, output_tokens: int) -> bool:
        """Reserve credits for `output_tokens` more tokens. Tells whether that was possible."""
        price = self._price_of(request)
        media = request.asked.media
        more = 0 if price is None else bound(0, output_tokens, price, request.margin, media=media)
        limit = request.asked.chat.max_cost
        if limit and request.reservation.amount + more > limit_nano(limit):
            return False
        return await self.reserve_more(request, more, output_tokens)

    def _price_of(self, request: Request) -> Price | None:
        candidate = request.candidate
        if candidate is None:
            return None
        return request.prices[candidate.target, candidate.model.priced_as]

    def output_cap(self, model: Model) -> int:
        """Return the limit of output tokens of a model whose caller names none."""
        return self.planner.output_cap(model)

    def _rate(self, request: Request) -> None:
        """Work out cost and savings from the usage."""
        usage = request.usage
        by_provider = provider_cost_of(usage) is not None
        request.price = price = self._price_of(request)
        price = Price() if price is None else price
        request.cost_source = "provider" if by_provider else "estimate" if usage.estimated else "price"
        if not by_provider and price.source == "fallback":
            request.cost_source = "unknown"
        limit = None
        if not by_provider and usage.estimated:
            # Nobody pays more for a guess than what was set aside for the answer.
            limit = max(0, request.reservation.amount - request.broken.cost)
        request.include_broken(sell_of(usage, price, request.margin, limit), limit)
        wanted = self._baseline
        listed = None if wanted is None else request.prices[wanted]
        baseline = None if wanted is None or listed is None else (listed, request.margin_for(wanted[0]))
        request.saved = savings_of(request.usage, request.cost, (price, request.margin), baseline)
        request.savings = None if baseline is None else request.saved.total

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
        self._let_go(request)
        if request.chargeable:
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

    def _let_go(self, request: Request) -> None:
        """End what is reserved of limits, as `_recorded` does with the credits."""
        drawn = request.reservation.drawn
        if drawn is None or self._budgets is None:
            return
        if request.chargeable:
            tokens = request.usage.input_total + request.usage.output_total
            self._budgets.spend(drawn, request.cost, tokens)
        else:
            self._budgets.cancel(drawn)

    async def drain(self) -> None:
        """Wait until the record of every ended request is written."""
        while self._endings:
            await asyncio.wait(self._endings)
