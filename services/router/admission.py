"""Before and after the provider: plan and reserve, then rate, record and settle."""

from __future__ import annotations

import asyncio
import time
from functools import partial

from omnihub.billing.v1.price_pb2 import Margin, Price
from omnihub.common.v1.chat_pb2 import Usage
from omnihub.router.v1.router_service_pb2 import RateLimit

from services.common.ids import new_id
from services.common.rpc import Call, RpcError
from services.common.rpc.call import Identity
from services.common.rpc.errors import to_rpc_error
from services.credits.money import format_nano, limit_nano
from services.credits.rating import Rated, bound, provider_cost_of, sell_of
from services.credits.savings import savings_of
from services.router.accounting.aside import sum_of
from services.router.accounting.budgets import Budgets
from services.router.accounting.journal import Journal, JournalError
from services.router.accounting.leases import HOLD_TTL_S, Leases, Reservation
from services.router.accounting.pending import Pending
from services.router.accounting.prices import Prices, Wanted
from services.router.asked import Asked
from services.router.cache.caching import OFF, AnswerCache
from services.router.domain.catalogue import Catalogue, Model, Target
from services.router.domain.errors import RoutingError
from services.router.domain.estimate import LARGEST
from services.router.domain.limits import OrganisationRules
from services.router.domain.policy import Candidate, Plan
from services.router.domain.strategy import Strategy, arranged, strategy_of
from services.router.execution.attempts import Opened, provider_id_of
from services.router.health.latency import Latencies
from services.router.health.measurements import Measurements
from services.router.metrics import observe
from services.router.planning.planner import Planner
from services.router.refusals import refusal_record
from services.router.request import Request
from services.router.settings import RouterSettings

OBSERVE_AFTER_S = 0.005
MICRO = 1_000_000
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
        cache: AnswerCache,
        budgets: Budgets | None = None,
    ) -> None:
        self.cache = cache
        self.prices = prices
        self._leases = leases
        self._budgets = budgets
        self._journal = journal
        self.latencies = latencies
        self.planner = planner
        self.measurements: Measurements | None = None
        """Where the latency of whole answers goes."""
        self.pending = None if budgets is None else Pending(budgets)
        """What answers in the background have reserved of limits."""
        self._baseline: Wanted | None = None
        if settings.baseline_model:
            self._baseline = Target.parse(settings.baseline_model), ""
        self.catalogue = Catalogue({})
        self.configured_at = float(int(time.time()))
        self._endings: set[asyncio.Future[None]] = set()
        self._unobserved: list[tuple[Request, float]] = []
        """Requests that have ended, and how long they took."""

    async def admit(self, asked: Asked, call: Call) -> Request:
        """Plan a request and reserve what its first candidate may cost.

        Raises routing errors of the domain, and RpcError INSUFFICIENT_CREDITS, IN_FLIGHT_BUDGET_EXHAUSTED,
        ESTIMATE_EXCEEDS_BUDGET, BUDGET_LIMIT or RATE_LIMITED.
        """
        plan: Plan | None = None
        budget = self.budget_of(call.identity)
        try:
            # A person stays with a version; without one each request falls anew.
            unit = asked.options.session or asked.chat.user or call.request_id
            planned = await self.planner.plan(asked, call.identity, self.catalogue, unit, self._baseline)
            plan = planned.plan
            strategy = strategy_of(asked.options, asked.chat, plan.chain[0].model.settings)
            if asked.background and not strategy.alone:
                # A loser would be made to its end all the same: providers do not stop when nobody listens.
                strategy = Strategy()
            plan = arranged(plan, strategy, unit)
            wish = self.cache.wish(asked, call, plan)
            look = await self.cache.look(wish, asked, call, plan) if wish else OFF
            reservation = await self._reserve(asked, call, plan, budget, free=look.answer is not None)
        except (RoutingError, RpcError) as refusal:
            self._note_refusal(asked, call, plan or getattr(refusal, "plan", None), refusal)
            raise
        request = Request(
            call,
            asked,
            plan,
            planned.prices,
            reservation,
            sticky_key=planned.sticky_key,
            strategy=strategy,
            look=look,
        )
        if reservation.drawn is not None:
            # The moment that decided the windows of its limits is the one its charge is booked at.
            request.started_at = reservation.drawn.at / MICRO
            request.rate_limits = self.rate_limits(request)
        return request

    def budget_of(self, identity: Identity) -> OrganisationRules | None:
        """Return the limits and the plan of who asks; None when there are none."""
        return None if self._budgets is None else self._budgets.rules.of(identity.organisation_id)

    async def _reserve(
        self, asked: Asked, call: Call, chosen: Plan, budget: OrganisationRules | None, *, free: bool
    ) -> Reservation:
        """Reserve what the first candidate may use, of every limit and of the credits.

        One that is `free`, because its answer is at hand, counts as a request and uses nothing else.
        """
        first, identity = chosen.chain[0], call.identity
        amount = 0 if free else first.estimate_nano or 0
        drawn = None
        if budget is not None and self._budgets is not None:
            rules = self._budgets.rules_for(budget, identity, asked.chat.agent_id, asked.chat.run_id)
            if rules:
                tokens = 0 if free else self._tokens_bound(asked, first)
                drawn = await self._budgets.reserve(identity.organisation_id, rules, amount, tokens)
        try:
            if asked.background:
                # It outlives this process, so what is reserved has to as well.
                reservation = await self._leases.hold_for(identity.organisation_id, amount, BACKGROUND_HOLD_S)
            else:
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
        tokens = asked.input_sizes[0] + self.planner.output_bound(asked, candidate.model)
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
        wanted = candidate.estimate_nano or 0
        beside = request.lost.cost + request.running_nano
        limit = request.asked.chat.max_cost
        if beside and limit and wanted + beside > limit_nano(limit):
            return False
        more = max(0, wanted + beside - request.reservation.amount)
        tokens = self._more_tokens(request, candidate)
        return not (more or tokens) or await self.reserve_more(request, more, tokens)

    def _more_tokens(self, request: Request, candidate: Candidate, before: Usage | None = None) -> int:
        """Return how many tokens `candidate` may use beyond those reserved; 0 when no limit counts them."""
        drawn = request.reservation.drawn
        if drawn is None or not (reserved := drawn.tokens):
            return 0
        wanted = self._tokens_bound(request.asked, candidate) + request.running_tokens
        for used in (request.lost.usage, before):
            wanted += 0 if used is None else used.input_total + used.output_total
        return max(0, wanted - reserved)

    def run_beside(self, request: Request, candidate: Candidate) -> None:
        """Note that `candidate` runs beside others: what it may use is not there for them."""
        request.running_nano += candidate.estimate_nano or 0
        request.running_tokens += self._tokens_bound(request.asked, candidate)

    def failed_beside(self, request: Request, candidate: Candidate) -> None:
        """Note that a candidate which ran beside others has failed."""
        request.running_nano -= candidate.estimate_nano or 0
        request.running_tokens -= self._tokens_bound(request.asked, candidate)

    def lose(self, request: Request, lane: Request, usage: Usage | None, produced_bytes: int) -> None:
        """Put aside what a candidate has produced that another one was faster than. Nothing costs nothing.

        `usage` is what its provider reported, if it came that far.
        """
        record = lane.current
        if record is None:
            return
        record.lost = True
        if lane.head and not record.provider_id:
            lane.name_attempt(provider_id_of(Opened(lane.head, None)))
        if usage is None:
            if not produced_bytes:
                return
            lane.estimate_usage(produced_bytes)
            usage = lane.usage
        lane.usage, lane.price = usage, self._price_of(lane)
        limit = None
        if usage.estimated and lane.candidate is not None:
            # Nobody pays more for a guess than what was set aside for the candidate.
            limit = lane.candidate.estimate_nano or 0
        rated = sell_of(usage, lane.price or Price(), lane.margin, limit)
        record.usage.CopyFrom(usage)
        record.cost = format_nano(rated.sell)
        request.lost.add(lane.part(rated, limit), usage, rated.rounding_pico)

    async def afford_rescue(self, request: Request, candidate: Candidate, text_bytes: int) -> bool:
        """Reserve what `candidate` may cost to go on after `text_bytes`, beside what has been spent."""
        price = request.prices[candidate.target, candidate.model.priced_as]
        spent = self._rated(request, text_bytes).sell
        wanted = request.broken.cost + request.lost.cost + spent + (candidate.estimate_nano or 0)
        margin, tier = request.margin_for(candidate.target), request.asked.service_tier
        wanted += 0 if price is None else bound(text_bytes, 0, price, margin, service_tier=tier)
        limit = request.asked.chat.max_cost
        if limit and wanted > limit_nano(limit):
            return False
        more = max(0, wanted - request.reservation.amount)
        before = sum_of(request.broken.usage, request.usage)
        tokens = self._more_tokens(request, candidate, before)
        return not (more or tokens) or await self.reserve_more(request, more, tokens)

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
        request.broken.add(request.part(rated, None), request.usage, rated.rounding_pico)
        request.rescued_from.append(request.target.name)
        request.usage = Usage()

    async def extend(self, request: Request, output_tokens: int) -> bool:
        """Reserve credits for `output_tokens` more tokens. Tells whether that was possible."""
        price = self._price_of(request)
        asked, more = request.asked, 0
        if price is not None:
            tier = asked.service_tier
            more = bound(0, output_tokens, price, request.margin, media=asked.media, service_tier=tier)
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
        request.price = price = self._price_of(request)
        price = Price() if price is None else price
        if request.look.answer is not None:
            self._rate_again(request, price)
            return
        by_provider = provider_cost_of(usage) is not None
        request.cost_source = "provider" if by_provider else "estimate" if usage.estimated else "price"
        if not by_provider and price.source == "fallback":
            request.cost_source = "unknown"
        limit = None
        if not by_provider and usage.estimated:
            # Nobody pays more for a guess than what was set aside for the answer.
            limit = max(0, request.reservation.amount - request.broken.cost - request.lost.cost)
        request.include_others(sell_of(usage, price, request.margin, limit), limit)
        baseline = self._baseline_of(request)
        request.saved = saved = savings_of(request.usage, request.cost, (price, request.margin), baseline)
        request.savings = saved.total if baseline is not None or saved.prompt_cache else None

    def _rate_again(self, request: Request, price: Price) -> None:
        """Note that a kept answer costs nothing, and what it would have cost."""
        request.cost_source, request.cost = "cache", 0
        would = sell_of(request.usage, price, request.margin).sell
        saved = savings_of(request.usage, would, (price, request.margin), self._baseline_of(request))
        request.saved = saved = saved._replace(cache=would)
        request.savings = saved.total

    def _baseline_of(self, request: Request) -> tuple[Price, Margin | None] | None:
        wanted = self._baseline
        listed = None if wanted is None else request.prices[wanted]
        return None if wanted is None or listed is None else (listed, request.margin_for(wanted[0]))

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
        request.price, request.baseline = self._price_of(request), self._baseline_of(request)
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
        written.add_done_callback(partial(self._recorded, request))
        return written

    def _recorded(self, request: Request, written: asyncio.Future[None]) -> None:
        """Let the reservation go, now and not before: a lease without reservations can be closed any time."""
        self._endings.discard(written)
        failure = written.exception()
        self._let_go(request, failure is None)
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
        if request.state == "complete" and request.current is not None:
            self._observe(request)
            self.planner.sticky.keep(request.sticky_key, request.target.name)
        # Metrics can wait until the answer has left, and those of several requests go together.
        if not self._unobserved:
            asyncio.get_running_loop().call_later(OBSERVE_AFTER_S, self._observe_all)
        self._unobserved.append((request, time.monotonic() - request.started))

    def _observe_all(self) -> None:
        ended, self._unobserved = self._unobserved, []
        for request, duration_s in ended:
            observe(request, duration_s)

    def _observe(self, request: Request) -> None:
        assert request.current is not None
        latency_ms = request.current.latency_ms
        self.latencies.observe(request.target, latency_ms)
        if self.measurements is not None:
            self.measurements.latency(request.target, latency_ms)

    def _let_go(self, request: Request, recorded: bool) -> None:
        """End what is reserved of limits, as `_recorded` does with the credits."""
        drawn = request.reservation.drawn
        if drawn is None or self._budgets is None:
            return
        if request.pending and recorded and self.pending is not None and request.current is not None:
            self.pending.keep(request.current.attempt_id, drawn, request.reservation.amount)
        elif request.chargeable:
            self._budgets.spend(drawn, request.cost, _tokens_of(request))
        else:
            self._budgets.cancel(drawn)

    async def drain(self) -> None:
        """Wait until the record of every ended request is written."""
        while self._endings:
            await asyncio.wait(self._endings)


def _tokens_of(request: Request) -> int:
    """Return how many tokens of its limits a request has used: none when its answer was at hand."""
    if request.look.answer is not None:
        return 0
    used = (request.usage, request.lost.usage)
    return sum(usage.input_total + usage.output_total for usage in used)
