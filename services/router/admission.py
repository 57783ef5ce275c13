"""Before and after the provider: plan and reserve, then rate, record and settle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from omnihub.billing.v1.price_pb2 import Price
from omnihub.common.v1.chat_pb2 import ChatInput

from services.common.rpc import Call
from services.common.telemetry import meter
from services.credits.rating import bound, rate
from services.router.domain.catalogue import AUTO, Catalogue, Target
from services.router.domain.estimate import input_bound
from services.router.domain.policy import Plan, plan
from services.router.journal import Journal
from services.router.latency import Latencies
from services.router.leases import Leases
from services.router.prices import Prices
from services.router.request import Request
from services.router.settings import RouterSettings

_duration = meter.create_histogram("gen_ai.server.request.duration", unit="s")
_first_token = meter.create_histogram("gen_ai.server.time_to_first_token", unit="s")
_tokens = meter.create_histogram("gen_ai.client.token.usage", unit="{token}")
_credits = meter.create_counter("omnihub.credits", unit="{credit}")
# The event loop keeps only weak references to tasks.
_endings: set[asyncio.Task[None]] = set()


class Admission:
    """Owns what a request needs around its attempts: catalogue, prices, leases and journal."""

    def __init__(
        self,
        settings: RouterSettings,
        prices: Prices,
        leases: Leases,
        journal: Journal,
        latencies: Latencies,
    ) -> None:
        self._settings = settings
        self.prices = prices
        self._leases = leases
        self._journal = journal
        self.latencies = latencies
        self._baseline = Target.parse(settings.baseline_model) if settings.baseline_model else None
        self.catalogue = Catalogue({})
        self.configured_at = float(int(time.time()))

    async def admit(
        self,
        chat: ChatInput,
        raw_body: bytes,
        call: Call,
        *,
        streamed: bool,
        choices: int = 1,
        modality: str = "chat",
    ) -> Request:
        """Plan a request and reserve what it may cost.

        Raises routing errors of the domain, and RpcError INSUFFICIENT_CREDITS or IN_FLIGHT_BUDGET_EXHAUSTED.
        """
        chosen = await self._plan(chat, raw_body, call, choices)
        amount = max(candidate.estimate_nano or 0 for candidate in chosen.chain)
        reservation = await self._leases.reserve(call.identity.organisation_id, amount)
        return Request(call, chat, chosen, reservation, streamed, modality)

    async def _plan(self, chat: ChatInput, raw_body: bytes, call: Call, choices: int) -> Plan:
        allowed = call.identity.allowed_models
        await self.prices.fetch(self._needed(chat.model))
        input_tokens = input_bound(raw_body, chat)
        output_tokens = choices * (chat.max_tokens or self._settings.default_output_tokens)

        def estimate(target: Target, configured_model: str) -> int | None:
            price = self.price(target, configured_model)
            return None if price is None else bound(input_tokens, output_tokens, price)

        return plan(chat, self.catalogue, allowed, estimate, self.latencies.of)

    def _needed(self, model: str) -> Iterable[tuple[Target, str]]:
        """Return the prices a request for `model` needs."""
        if self._baseline is not None:
            yield self._baseline, ""
        found = self.catalogue.models.get(model)
        if found is not None:
            for target in found.targets:
                yield target, found.name
        elif model in ("", AUTO):
            for each in self.catalogue.models.values():
                for target in each.targets:
                    yield target, each.name
        elif "/" in model:
            yield Target.parse(model), ""

    def price(self, target: Target, configured_model: str) -> Price | None:
        """Return the price of a target, or a free one when the settings say so."""
        price = self.prices.known(target, configured_model)
        if price is None and self._settings.unknown_price == "free":
            return Price(version="unknown", source="free")
        return price

    async def extend(self, request: Request, output_tokens: int) -> bool:
        """Reserve credits for `output_tokens` more tokens. Tells whether that was possible."""
        price = self._price_of(request)
        if price is None:
            return True
        more = bound(0, output_tokens, price)
        return more == 0 or await self._leases.extend(request.reservation, more)

    def _price_of(self, request: Request) -> Price | None:
        candidate = request.candidate
        return None if candidate is None else self.price(candidate.target, candidate.model)

    def rate(self, request: Request) -> None:
        """Work out cost and savings from the usage."""
        price = self._price_of(request)
        request.price = price
        request.cost = 0 if price is None else rate(request.usage, price)
        request.cost_source = (
            "provider" if request.usage.provider_cost else "estimate" if request.usage.estimated else "price"
        )
        baseline = None if self._baseline is None else self.prices.known(self._baseline, "")
        if baseline is not None:
            usage = type(request.usage)()
            usage.CopyFrom(request.usage)
            usage.provider_cost = ""
            request.savings = rate(usage, baseline) - request.cost

    async def conclude(self, request: Request) -> None:
        """Record an answered request durably, then let its reservation go. Before the last byte."""
        self.rate(request)
        await self._journal.append(request.record())
        self._leases.spend(request.reservation, request.cost)
        self._observe(request)

    def conclude_soon(self, request: Request) -> None:
        """Record a request whose caller has gone, without waiting."""
        self.rate(request)
        self._journal.append_soon(request.record())
        self._leases.spend(request.reservation, request.cost)
        self._observe(request)

    def abandon(self, request: Request) -> None:
        """Record a request that produced nothing: it costs nothing."""
        self._journal.append_soon(request.record())
        self._observe(request)
        task = asyncio.create_task(self._leases.cancel(request.reservation))
        _endings.add(task)
        task.add_done_callback(_ended)

    def _observe(self, request: Request) -> None:
        attributes = {
            "gen_ai.operation.name": request.modality,
            "gen_ai.request.model": request.plan.chain[0].target.name,
            "gen_ai.provider.name": request.target.provider if request.candidate else "",
            "omnihub.state": request.state,
        }
        seconds = time.monotonic() - request.started
        _duration.record(seconds, attributes)
        if request.state != "complete":
            return
        self.latencies.observe(request.target, seconds * 1000)
        if request.first_token_at is not None:
            _first_token.record(request.first_token_at - request.started, attributes)
        _tokens.record(request.usage.input_total, {**attributes, "gen_ai.token.type": "input"})
        _tokens.record(request.usage.output_total, {**attributes, "gen_ai.token.type": "output"})
        _credits.add(request.cost / 1e9, attributes)


def _ended(task: asyncio.Task[None]) -> None:
    _endings.discard(task)
    if not task.cancelled():
        # A hold that could not be released expires by itself.
        task.exception()
