"""Responses that providers keep: found by their organisation alone, and paid once when they end.

An answer in the background is recorded as soon as its id is known, without a charge but with a hold of its
own. Whoever first sees its end - a caller who reads it, the stream it came in, or the sweeper - puts the
charge into the journal, under the id of the attempt that made it.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing

from omnihub.billing.v1.price_pb2 import Margin, Price
from omnihub.billing.v1.usage_pb2 import Charge
from omnihub.common.v1.chat_pb2 import Finish, Usage
from omnihub.provider.v1 import provider_service_pb2 as provider
from omnihub.provider.v1 import stored_response_service_pb2 as pb
from omnihub.provider.v1.stored_response_service_api import StoredResponseService
from omnihub.router.v1.decision_pb2 import Decision

from services.common.rpc import Call, RpcError
from services.common.rpc.errors import Violation
from services.credits.money import format_nano
from services.credits.rating import provider_cost_of, sell_of
from services.credits.savings import note_savings, savings_of
from services.router.accounting.pending import Pending
from services.router.request import savings_message
from services.router.responses.store import ResponseStore, StoredResponse

# Ids this process has seen lately: going on from them needs no look into the database.
REMEMBERED = 10_000
BATCH = 50
POLL_TIMEOUT_S = 30.0
# As long as a provider may take; then it is charged as what was held for it.
LIMIT_S = 86_400.0

GET = pb.STORED_RESPONSE_OPERATION_GET
DELETE = pb.STORED_RESPONSE_OPERATION_DELETE
CANCEL = pb.STORED_RESPONSE_OPERATION_CANCEL
_STATES = {"completed": "complete", "incomplete": "complete", "cancelled": "cancelled"}

_logger = logging.getLogger(__name__)


class StoredResponses:
    """Finds stored responses, asks the providers that keep them, and settles what ended."""

    def __init__(
        self, store: ResponseStore, keeper: StoredResponseService, pending: Pending | None = None
    ) -> None:
        self._store = store
        self._keeper = keeper
        self._pending = pending
        self._recent: OrderedDict[tuple[str, str], str] = OrderedDict()

    def remember(self, stored: StoredResponse) -> None:
        """Take in a response that has just been recorded."""
        self._recent[stored.organisation_id, stored.response_id] = stored.provider
        if len(self._recent) > REMEMBERED:
            self._recent.popitem(last=False)

    async def provider_of(self, response_id: str, call: Call) -> str:
        """Return who keeps the answer that another one is to go on from. Raises RpcError NOT_FOUND."""
        known = self._recent.get((call.identity.organisation_id, response_id))
        if known is not None:
            return known
        found = await self._store.find(call.identity.organisation_id, response_id)
        if found is None:
            field = "previous_response_id"
            raise _not_found(response_id, field)
        self.remember(found)
        return found.provider

    async def find(self, response_id: str, call: Call) -> StoredResponse:
        """Return a response of the caller's organisation. Raises RpcError NOT_FOUND."""
        found = await self._store.find(call.identity.organisation_id, response_id)
        if found is None:
            raise _not_found(response_id)
        return found

    async def ask(
        self,
        stored: StoredResponse,
        operation: pb.StoredResponseOperation.ValueType,
        call: Call,
        query: str = "",
    ) -> tuple[bytes, str]:
        """Return what the provider answers, and the cost of an answer that has ended. Raises RpcError."""
        request = pb.AskStoredResponseRequest(
            provider=stored.provider, response_id=stored.response_id, operation=operation, query=query
        )
        answer = await self._keeper.ask_stored_response(request, call)
        cost = ""
        if stored.pending and answer.status and answer.HasField("finish"):
            usage = answer.usage if answer.HasField("usage") else None
            cost = await self.settle(stored, answer.status, answer.finish, usage)
        return answer.raw_body, cost

    async def follow(
        self, stored: StoredResponse, query: str, call: Call
    ) -> AsyncGenerator[tuple[provider.StreamChatResponse, str], None]:
        """Yield the events of a response, each with the cost of the answer once that is known."""
        request = pb.FollowStoredResponseRequest(
            provider=stored.provider, response_id=stored.response_id, query=query
        )
        async with aclosing(self._keeper.follow_stored_response(request, call)) as events:  # type: ignore[type-var]
            async for message in events:
                event, cost = message.event, ""
                if stored.pending and event.HasField("end"):
                    # Ended one way or another: what is not `completed` has its own word in the finish.
                    status = "cancelled" if event.end.finish.reason == "cancelled" else "completed"
                    cost = await self.settle(stored, status, event.end.finish, event.end.usage)
                yield event, cost

    async def delete(self, stored: StoredResponse, call: Call) -> bytes:
        """Delete a response at its provider, paid for what was produced until then. Raises RpcError."""
        if stored.pending:
            await self._stop(stored, call)
        request = pb.AskStoredResponseRequest(
            provider=stored.provider, response_id=stored.response_id, operation=DELETE
        )
        try:
            answer = await self._keeper.ask_stored_response(request, call)
        except RpcError as error:
            if error.reason == "NOT_FOUND":
                await self._forget(stored)
            raise
        await self._forget(stored)
        return answer.raw_body

    async def _forget(self, stored: StoredResponse) -> None:
        self._recent.pop((stored.organisation_id, stored.response_id), None)
        await self._store.delete(stored)

    async def _stop(self, stored: StoredResponse, call: Call) -> None:
        """Cancel what is made in the background, and settle it."""
        try:
            await self.ask(stored, CANCEL, call)
        except RpcError as error:
            # It may have ended just now.
            _logger.info("response_not_cancelled %s %s", stored.response_id, error.reason)
        await self.ask(stored, GET, call)
        await self.settle(stored, "cancelled", Finish(reason="cancelled", raw="deleted"), None)

    async def settle(
        self,
        stored: StoredResponse,
        status: str,
        finish: Finish,
        usage: Usage | None,
        amount: int | None = None,
    ) -> str:
        """Charge a response that has ended, if nobody has done so yet, and return its cost in credits.

        Without a reported usage the estimated input is charged, or `amount` nano-credits where it is given.
        """
        charge = Charge.FromString(stored.charge)
        if usage is not None and (usage.input_total or usage.output_total):
            tier = charge.usage.service_tier
            charge.usage.CopyFrom(usage)
            charge.usage.service_tier = usage.service_tier or tier
            charge.cost_source = "provider" if provider_cost_of(usage) is not None else "price"
        else:
            charge.cost_source = "estimate"
        price = Price.FromString(stored.price)
        margin = Margin.FromString(stored.margin) if stored.margin else None
        rated = sell_of(charge.usage, price, margin)
        charge.amount_nano_credits = rated.sell if amount is None else amount
        charge.cost_nano_credits = rated.cost if amount is None else amount
        charge.rounding_pico_credits = rated.rounding_pico if amount is None else 0
        charge.price_version = price.version
        charge.state = _STATES.get(status, "upstream_error")
        charge.latency_ms = max(0, min(2**32 - 1, int(time.time() * 1000) - stored.at))
        cost = format_nano(charge.amount_nano_credits)
        decision = Decision(
            state=charge.state, usage=charge.usage, finish=finish, cost=cost, latency_ms=charge.latency_ms
        )
        baseline = _baseline_of(stored)
        saved = savings_of(charge.usage, charge.amount_nano_credits, (price, margin), baseline)
        note_savings(charge, saved)
        if baseline is not None or saved.prompt_cache:
            decision.savings_estimate = format_nano(saved.total)
            decision.savings.CopyFrom(savings_message(saved))
        if await self._store.settle(stored, charge, decision) and self._pending is not None:
            self._pending.ended(charge)
        return cost

    async def sweep(self, poll_s: float) -> None:
        """Ask about every answer in the background that nobody has asked about for `poll_s` seconds."""
        now_ms = int(time.time() * 1000)
        for stored in await self._store.due(now_ms - int(poll_s * 1000), BATCH):
            if not await self._store.claim(stored, now_ms):
                continue
            try:
                await self.ask(stored, GET, Call.internal(POLL_TIMEOUT_S))
            except RpcError as error:
                _logger.info("response_not_polled %s %s", stored.response_id, error.reason)
                if error.reason == "NOT_FOUND":
                    gone = Finish(reason="error", raw="not_found")
                    await self.settle(stored, "failed", gone, None)
            if now_ms - stored.at > LIMIT_S * 1000:
                late = Finish(reason="error", raw="no_end")
                await self.settle(stored, "failed", late, None, amount=stored.reserved)
        if self._pending is not None:
            await self._pending.look(self._store.ends_of)


def _baseline_of(stored: StoredResponse) -> tuple[Price, Margin | None] | None:
    if not stored.baseline:
        return None
    margin = Margin.FromString(stored.baseline_margin) if stored.baseline_margin else None
    return Price.FromString(stored.baseline), margin


def _not_found(response_id: str, field: str = "") -> RpcError:
    message = (
        f"no response {response_id!r} is kept for this organisation: check the id, "
        "and that `store` was not false"
    )
    violations = [Violation(field, "no such response")] if field else []
    return RpcError("NOT_FOUND", message, violations=violations)
