"""Services that answer from memory, as their contracts say, for tests of the services that call them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from omnihub.billing.v1 import billing_service_pb2 as billing
from omnihub.billing.v1 import budget_service_pb2 as budget
from omnihub.billing.v1.price_pb2 import Margin, Price, PriceKey
from omnihub.billing.v1.usage_pb2 import Charge
from omnihub.common.v1.change_pb2 import Change
from omnihub.provider.v1 import provider_service_pb2 as provider

from services.common.rpc import Call, Identity, RpcError


class Fake:
    """Answers NOT_IMPLEMENTED to what a fake does not serve."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        async def missing(request: Any, call: Call) -> Any:
            raise RpcError("NOT_IMPLEMENTED", f"this fake has no {name}")

        return missing


class FakeBilling(Fake):
    """A wallet in memory. `refusals` are raised, one for each call of the named rpc."""

    def __init__(self, available: int = 10**12, lease_ttl_s: int = 30) -> None:
        self.available = available
        self.lease_ttl_s = lease_ttl_s
        self.prices: dict[str, Price] = {}
        self.margins: list[Margin] = []
        self.fallback: Price | None = None
        self.leases: dict[str, int] = {}
        self.closed: dict[str, int] = {}
        self.expired: list[str] = []
        self.unbookable: set[str] = set()
        self.unbookable_reason = "INVALID_ARGUMENT"
        self.breaking: set[str] = set()
        self.holds: dict[str, int] = {}
        self.released: list[str] = []
        self.charges: dict[str, Charge] = {}
        self.calls: list[str] = []
        self.refusals: dict[str, list[RpcError]] = {}
        self.changes: asyncio.Queue[list[Change]] = asyncio.Queue()
        self.before: dict[str, Callable[[], Awaitable[None]]] = {}

    def price(self, target: str, input_pico: int, output_pico: int, **more: int) -> None:
        """Set the price of `provider/model` in pico-credits per token."""
        version = f"{target}@{input_pico}/{output_pico}"
        self.prices[target] = Price(version=version, input_pico=input_pico, output_pico=output_pico, **more)

    async def _enter(self, name: str) -> None:
        self.calls.append(name)
        if name in self.before:
            await self.before[name]()
        if self.refusals.get(name):
            raise self.refusals[name].pop(0)

    async def batch_get_prices(self, request: Any, call: Call) -> billing.BatchGetPricesResponse:
        await self._enter("batch_get_prices")
        answer = billing.BatchGetPricesResponse()
        for key in request.keys:
            price = self.prices.get(f"{key.provider}/{key.model}")
            if price is None and request.include_fallback:
                price = self.fallback
            if price is not None:
                found = answer.prices.add()
                found.CopyFrom(price)
                found.key.CopyFrom(
                    PriceKey(provider=key.provider, model=key.model, configured_model=key.configured_model)
                )
        answer.margins_version = str(len(self.margins)) if self.margins else ""
        if request.margins_version != answer.margins_version:
            answer.margins.extend(self.margins)
        return answer

    async def watch_changes(self, request: Any, call: Call) -> AsyncIterator[Any]:
        seq = request.after_seq
        while True:
            changes = await self.changes.get()
            seq += len(changes)
            yield billing.WatchChangesResponse(changes=changes, seq=seq)

    async def acquire_lease(self, request: Any, call: Call) -> billing.AcquireLeaseResponse:
        await self._enter("acquire_lease")
        granted = min(request.wanted_nano_credits, self.available)
        if granted < request.minimum_nano_credits:
            raise self._refusal()
        self.available -= granted
        self.leases[request.lease_id] = granted
        return billing.AcquireLeaseResponse(
            granted_nano_credits=granted,
            expires_in_s=self.lease_ttl_s,
            available_nano_credits=self.available,
        )

    def _refusal(self) -> RpcError:
        if self.leases or self.holds:
            return RpcError("IN_FLIGHT_BUDGET_EXHAUSTED", "requests under way hold the rest", retry_after_s=1)
        return RpcError("INSUFFICIENT_CREDITS", "not enough credits; add some")

    async def renew_leases(self, request: Any, call: Call) -> billing.RenewLeasesResponse:
        await self._enter("renew_leases")
        renewed = [lease_id for lease_id in request.lease_ids if lease_id in self.leases]
        return billing.RenewLeasesResponse(renewed_lease_ids=renewed, expires_in_s=self.lease_ttl_s)

    async def close_lease(self, request: Any, call: Call) -> billing.CloseLeaseResponse:
        await self._enter("close_lease")
        rest = self.leases.pop(request.lease_id, 0)
        if request.lease_id in self.expired:
            self.expired.remove(request.lease_id)
        self.closed[request.lease_id] = rest
        self.available += rest
        return billing.CloseLeaseResponse(returned_nano_credits=rest)

    async def list_expired_leases(self, request: Any, call: Call) -> billing.ListExpiredLeasesResponse:
        await self._enter("list_expired_leases")
        leases = [billing.ExpiredLease(lease_id=lease_id, holder="gone") for lease_id in self.expired]
        return billing.ListExpiredLeasesResponse(leases=leases)

    async def create_hold(self, request: Any, call: Call) -> billing.CreateHoldResponse:
        await self._enter("create_hold")
        if request.amount_nano_credits > self.available:
            raise self._refusal()
        self.available -= request.amount_nano_credits
        self.holds[request.hold_id] = request.amount_nano_credits
        return billing.CreateHoldResponse()

    async def extend_hold(self, request: Any, call: Call) -> billing.ExtendHoldResponse:
        await self._enter("extend_hold")
        more = request.amount_nano_credits - self.holds[request.hold_id]
        if more > self.available:
            raise self._refusal()
        self.available -= more
        self.holds[request.hold_id] += more
        return billing.ExtendHoldResponse()

    async def release_hold(self, request: Any, call: Call) -> billing.ReleaseHoldResponse:
        await self._enter("release_hold")
        self.available += self.holds.pop(request.hold_id, 0)
        self.released.append(request.hold_id)
        return billing.ReleaseHoldResponse()

    async def settle(self, request: Any, call: Call) -> billing.SettleResponse:
        await self._enter("settle")
        if any(charge.charge_id in self.unbookable for charge in request.charges):
            raise RpcError(self.unbookable_reason, "a charge that cannot be booked")
        if any(charge.charge_id in self.breaking for charge in request.charges):
            raise RpcError("INTERNAL", "a charge that billing fails at")
        fresh = [charge for charge in request.charges if charge.charge_id not in self.charges]
        for charge in fresh:
            self.charges[charge.charge_id] = charge
            amount = charge.amount_nano_credits
            if charge.lease_id in self.leases:
                self.leases[charge.lease_id] -= amount
            elif charge.hold_id in self.holds:
                self.available += self.holds.pop(charge.hold_id) - amount
            else:
                self.available -= amount
        return billing.SettleResponse(booked=len(fresh))


Answer = provider.ChatResponse | BaseException | Callable[[Any, Call], Awaitable[Any]]
Events = Callable[[Any, Call], AsyncIterator[Any]]


class FakeBudgets(Fake):
    """No limits and no plans."""

    async def sync_budgets(self, request: Any, call: Call) -> budget.SyncBudgetsResponse:
        return budget.SyncBudgetsResponse()

    async def list_expired_slices(self, request: Any, call: Call) -> budget.ListExpiredSlicesResponse:
        return budget.ListExpiredSlicesResponse()


class FakeProviders(Fake):
    """Providers that answer as they are told. `asked` holds every attempt; answers are taken in order."""

    def __init__(self, *names: str, features: Sequence[str] = ("chat", "stream", "embed")) -> None:
        self.capabilities = [
            provider.ProviderCapabilities(provider=name, adapter="fake", features=features) for name in names
        ]
        self.asked: list[Any] = []
        self.calls: list[Call] = []
        self.answers: dict[str, list[Answer]] = {}
        self.streams: dict[str, list[Events]] = {}
        self.entered = asyncio.Event()
        self.closed = asyncio.Event()

    async def get_capabilities(self, request: Any, call: Call) -> provider.GetCapabilitiesResponse:
        return provider.GetCapabilitiesResponse(providers=self.capabilities)

    async def chat(self, request: Any, call: Call) -> Any:
        return await self._answer(request, request.attempt, call)

    async def embed(self, request: Any, call: Call) -> Any:
        return await self._answer(request, request, call)

    async def _answer(self, request: Any, attempt: Any, call: Call) -> Any:
        self.asked.append(attempt)
        self.calls.append(call)
        answer = self.answers[f"{attempt.provider}/{attempt.model}"].pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return await answer(request, call) if callable(answer) else answer

    async def stream_chat(self, request: Any, call: Call) -> AsyncIterator[Any]:
        attempt = request.attempt
        self.asked.append(attempt)
        self.calls.append(call)
        self.entered.set()
        events = self.streams[f"{attempt.provider}/{attempt.model}"].pop(0)
        try:
            async for event in events(request, call):
                yield event
        finally:
            self.closed.set()


def events(*scripted: Any) -> Events:
    """Return a stream that sends messages, raises exceptions and awaits asyncio.Events, in order."""

    async def stream(request: Any, call: Call) -> AsyncIterator[Any]:
        for step in scripted:
            if isinstance(step, BaseException):
                raise step
            if isinstance(step, asyncio.Event):
                await step.wait()
            else:
                yield step

    return stream


class FakeAuthenticator:
    """Knows credentials by heart."""

    def __init__(self, **identities: Identity) -> None:
        self._identities = identities

    async def authenticate(self, credential: str) -> Identity:
        identity = self._identities.get(credential)
        if identity is None:
            raise RpcError("INVALID_CREDENTIAL", "the API key is not valid; check it or create a new one")
        return identity
