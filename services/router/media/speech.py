"""Speech as it is made: the first target that answers speaks, and its characters are paid once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from omnihub.billing.v1.usage_pb2 import Charge
from omnihub.common.v1.chat_pb2 import ParameterReceipt
from omnihub.common.v1.media_pb2 import MediaInput, MediaUsage
from omnihub.provider.v1 import media_provider_service_pb2 as provider
from omnihub.provider.v1.media_provider_service_api import MediaProviderService
from omnihub.router.v1 import media_router_service_pb2 as pb
from omnihub.router.v1.decision_pb2 import AttemptRecord, Decision

from services.common.ids import new_id
from services.common.rpc import Call, Identity, RpcError
from services.common.rpc.errors import to_rpc_error
from services.credits.media_rating import charge_media, most_tokens
from services.credits.money import format_nano
from services.router.accounting.budgets import MICRO, Budgets
from services.router.accounting.journal import Journal
from services.router.accounting.leases import Leases, Reservation
from services.router.accounting.store import Record
from services.router.domain.catalogue import Target
from services.router.domain.errors import NoCandidateError
from services.router.domain.limits import Drawn
from services.router.health.health import Health

KIND = "speech"
# The request itself is at fault: another provider would say the same.
_FINAL = frozenset(
    {
        "CANCELLED",
        "CONTENT_FILTERED",
        "DEADLINE_EXCEEDED",
        "INVALID_ARGUMENT",
        "PARAMETER_UNSUPPORTED",
        "PROVIDER_REJECTED",
    }
)


@dataclass(slots=True)
class _Speaking:
    """One request to speak."""

    given: MediaInput
    planned: pb.PlanMediaResponse
    call: Call
    reservation: Reservation
    decision_id: str = field(default_factory=lambda: new_id("dec"))
    started_at: float = field(default_factory=time.time)
    attempts: list[AttemptRecord] = field(default_factory=list)
    target: pb.MediaTarget | None = None
    """Who speaks."""
    receipt: list[ParameterReceipt] = field(default_factory=list)
    rated: Charge | None = None
    """What is paid; None while nothing is."""
    recorded: bool = False

    @property
    def model_used(self) -> str:
        """Return the name of who speaks, or an empty string."""
        return "" if self.target is None else f"{self.target.provider}/{self.target.model}"

    @property
    def cost(self) -> int:
        """Return what is paid, in nano-credits."""
        return 0 if self.rated is None else self.rated.amount_nano_credits

    def rate(self, usage: MediaUsage) -> None:
        """Work out the cost. Nobody pays more for a guess than what was set aside."""
        assert self.target is not None
        margin = self.target.margin if self.target.HasField("margin") else None
        limit = self.reservation.amount
        self.rated = charge_media(usage, self.target.expected, self.target.price, margin, limit)

    def record(self, state: str, reason: str) -> Record:
        """Return the journal's record."""
        attempt_id = self.attempts[-1].attempt_id if self.attempts else new_id("att")
        charge = b"" if self.rated is None else self._charge(attempt_id, state).SerializeToString()
        return Record(
            attempt_id=attempt_id,
            decision_id=self.decision_id,
            organisation_id=self.call.identity.organisation_id,
            lease_id=self.reservation.lease_id,
            at_ms=int(self.started_at * 1000),
            decision=self._decision(state, reason).SerializeToString(),
            charge=charge,
        )

    def _latency_ms(self) -> int:
        return round((time.time() - self.started_at) * 1000)

    def _decision(self, state: str, reason: str) -> Decision:
        decision = Decision(
            decision_id=self.decision_id,
            request_id=self.call.request_id,
            requested_model=self.planned.requested_model,
            task=KIND,
            attempts=self.attempts,
            model_used=self.model_used,
            state=state,
            reason=reason,
            cost=format_nano(self.cost),
            latency_ms=self._latency_ms(),
            receipt=self.receipt,
            key_id=self.call.identity.key_id,
            project_id=self.call.identity.project_id,
            streamed=True,
            estimate=format_nano(self.reservation.amount),
        )
        decision.started_at.FromMilliseconds(int(self.started_at * 1000))
        return decision

    def _charge(self, attempt_id: str, state: str) -> Charge:
        assert self.target is not None
        identity = self.call.identity
        charge = Charge(
            charge_id=attempt_id,
            organisation_id=identity.organisation_id,
            workspace_id=identity.workspace_id,
            lease_id=self.reservation.lease_id,
            hold_id=self.reservation.hold_id,
            request_id=self.call.request_id,
            decision_id=self.decision_id,
            key_id=identity.key_id,
            user_id=identity.user_id,
            project_id=identity.project_id,
            slice_ids=() if self.reservation.drawn is None else self.reservation.drawn.slice_ids,
            provider=self.target.provider,
            model=self.model_used,
            task=KIND,
            state=state,
            latency_ms=self._latency_ms(),
            modality=KIND,
        )
        if self.rated is not None:
            charge.MergeFrom(self.rated)
        charge.at.FromMilliseconds(int(self.started_at * 1000))
        return charge


class Speech:
    """Reserves, asks one target after the other, relays the sound, and records what it cost."""

    def __init__(
        self,
        providers: MediaProviderService,
        leases: Leases,
        journal: Journal,
        health: Health,
        budgets: Budgets | None = None,
    ) -> None:
        self._providers = providers
        self._leases = leases
        self._budgets = budgets
        self._journal = journal
        self._health = health
        self._endings: set[asyncio.Future[None]] = set()

    async def stream(
        self, given: MediaInput, planned: pb.PlanMediaResponse, call: Call
    ) -> AsyncGenerator[pb.StreamSpeechResponse, None]:
        """Yield the sound; the last message says what it cost.

        Raises NoCandidateError, the RpcErrors of `Leases.reserve` and `Budgets.reserve` before anybody is
        asked, and those of the providers.
        """
        targets = [target for target in planned.targets if target.streams_speech]
        if not targets:
            message = "none of the models for this can speak while it makes; make it as a job"
            raise NoCandidateError(message, model=planned.requested_model)
        reservation = await self._reserve(targets, call.identity)
        speaking = _Speaking(given, planned, call, reservation)
        if reservation.drawn is not None:
            # The moment that decided the windows of its limits is the one its charge is booked at.
            speaking.started_at = reservation.drawn.at / MICRO
        try:
            async with self._opened(speaking, targets) as (first, rest):
                yield _relayed(first)
                async for message in rest:
                    if message.HasField("end"):
                        speaking.rate(message.end.usage)
                        await asyncio.shield(self._record(speaking, "complete"))
                        yield _ended(message.end.usage, speaking)
                        return
                    yield _relayed(message)
                raise RpcError("STREAM_TRUNCATED", f"{speaking.model_used}: the sound ended before its end")
        except (asyncio.CancelledError, GeneratorExit):
            # The provider speaks for the whole text, whoever listens.
            if speaking.target is not None and not speaking.recorded:
                speaking.rate(MediaUsage(characters=len(given.speech.text), estimated=True))
            self._end(speaking, "cancelled", "CANCELLED")
            raise
        except Exception as error:
            self._end(speaking, "upstream_error", to_rpc_error(error).reason)
            raise

    async def _reserve(self, targets: list[pb.MediaTarget], identity: Identity) -> Reservation:
        """Reserve what any of the targets may use, of every limit and of the credits. Raises RpcError."""
        amount = max(target.estimate_nano_credits for target in targets)
        drawn = await self._draw(targets, amount, identity)
        try:
            reservation = await self._leases.reserve(identity.organisation_id, amount)
        except BaseException:
            if drawn is not None and self._budgets is not None:
                self._budgets.cancel(drawn)
            raise
        reservation.drawn = drawn
        return reservation

    async def _draw(self, targets: list[pb.MediaTarget], amount: int, identity: Identity) -> Drawn | None:
        """Reserve of the limits. Return None when there are none."""
        if self._budgets is None:
            return None
        known = self._budgets.rules.of(identity.organisation_id)
        rules = [] if known is None else self._budgets.rules_for(known, identity, "", "")
        if not rules:
            return None
        tokens = max(most_tokens(target.expected, target.price) for target in targets)
        return await self._budgets.reserve(identity.organisation_id, rules, amount, tokens)

    @asynccontextmanager
    async def _opened(
        self, speaking: _Speaking, targets: list[pb.MediaTarget]
    ) -> AsyncIterator[tuple[provider.StreamSpeechResponse, Any]]:
        """Hand out the first message and the rest of the first target that answers. Raises RpcError."""
        failure = RpcError("UNAVAILABLE", "nobody was asked")
        for target, attempt in _attempts(speaking, targets):
            name = Target(target.provider, target.model)
            objection = self._health.objection(name)
            if objection:
                failure = RpcError("UNAVAILABLE", f"{name.name}: {objection}")
                continue
            record = AttemptRecord(attempt_id=attempt.effect_key, target=name.name)
            speaking.attempts.append(record)
            began = time.monotonic()
            request = provider.StreamSpeechRequest(attempt=attempt)
            stream: Any = self._providers.stream_speech(request, speaking.call)
            async with aclosing(stream):
                try:
                    first = await anext(stream)
                except RpcError as error:
                    self._health.failed(name, error, began)
                    record.state, record.reason, record.message = "failed", error.reason, error.message[:500]
                    failure = error
                    if error.reason in _FINAL:
                        break
                    continue
                except BaseException:
                    self._health.released(name)
                    raise
                self._health.succeeded(name, began)
                speaking.target, speaking.receipt = target, list(first.start.receipt)
                try:
                    yield first, stream
                except RpcError as error:
                    self._health.failed(name, error, began)
                    raise
                return
        raise failure

    def _end(self, speaking: _Speaking, state: str, reason: str) -> None:
        """Record an end that nobody waits for, unless there was one."""
        if not speaking.recorded:
            self._record(speaking, state, reason)

    def _record(self, speaking: _Speaking, state: str, reason: str = "") -> asyncio.Future[None]:
        speaking.recorded = True
        if speaking.attempts and not speaking.attempts[-1].state:
            speaking.attempts[-1].state = state if state != "upstream_error" else "failed"
        written = self._journal.append(speaking.record(state, reason))
        self._endings.add(written)
        # Not before it is durable: a lease without reservations can be closed at any time.
        written.add_done_callback(lambda _: self._recorded(speaking, written))
        return written

    def _recorded(self, speaking: _Speaking, written: asyncio.Future[None]) -> None:
        self._endings.discard(written)
        # Taken, so that nobody warns of it: who waits is told as well.
        written.exception()
        reservation, rated = speaking.reservation, speaking.rated
        if rated is not None:
            self._leases.spend(reservation, speaking.cost)
        else:
            self._leases.cancel(reservation)
        if reservation.drawn is None or self._budgets is None:
            return
        if rated is not None:
            tokens = rated.usage.input_total + rated.usage.output_total
            self._budgets.spend(reservation.drawn, speaking.cost, tokens)
        else:
            self._budgets.cancel(reservation.drawn)

    async def drain(self) -> None:
        """Wait until the record of every ended request is written."""
        while self._endings:
            await asyncio.wait(self._endings)


def _attempts(
    speaking: _Speaking, targets: list[pb.MediaTarget]
) -> Iterator[tuple[pb.MediaTarget, provider.MediaAttempt]]:
    for target in targets:
        yield (
            target,
            provider.MediaAttempt(
                provider=target.provider,
                model=target.model,
                input=speaking.given,
                effect_key=new_id("att"),
            ),
        )


def _relayed(message: provider.StreamSpeechResponse) -> pb.StreamSpeechResponse:
    if message.HasField("audio"):
        return pb.StreamSpeechResponse(audio=message.audio)
    if message.HasField("alignment_json"):
        return pb.StreamSpeechResponse(alignment_json=message.alignment_json)
    return pb.StreamSpeechResponse(start=message.start)


def _ended(usage: MediaUsage, speaking: _Speaking) -> pb.StreamSpeechResponse:
    end = pb.SpeechEnd(usage=usage, cost=format_nano(speaking.cost), model_used=speaking.model_used)
    return pb.StreamSpeechResponse(end=end)
