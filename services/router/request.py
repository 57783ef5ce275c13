"""One request on its way through the router: what was asked, what is known, and how it is recorded."""

from __future__ import annotations

import time
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from omnihub.billing.v1.price_pb2 import Margin, Price
from omnihub.billing.v1.usage_pb2 import Charge, ChargePart
from omnihub.common.v1.chat_pb2 import Finish, ParameterReceipt, Usage
from omnihub.provider.v1.provider_service_pb2 import StreamChatResponse
from omnihub.router.v1 import router_service_pb2 as pb
from omnihub.router.v1.decision_pb2 import AttemptRecord, Decision
from omnihub.router.v1.decision_pb2 import Savings as SavingsMessage

from services.common.ids import new_id
from services.common.rpc import Call, RpcError
from services.credits.money import format_nano
from services.credits.rating import Rated
from services.credits.savings import Savings, note_savings
from services.router.accounting.aside import Aside, sum_of
from services.router.accounting.leases import Reservation
from services.router.accounting.prices import PriceTable
from services.router.accounting.store import Record
from services.router.asked import Asked, Look
from services.router.domain.catalogue import Target
from services.router.domain.estimate import likely_tokens
from services.router.domain.policy import Candidate, Plan
from services.router.domain.record import add_candidates, inputs_of
from services.router.domain.strategy import Strategy
from services.router.responses.store import StoredResponse

# A decision keeps what helps to explain it, not a provider's whole error page.
MESSAGE_LIMIT = 500
# As the column that keeps it.
RESPONSE_ID_LIMIT = 256


@dataclass(slots=True)
class Request:
    """The state of one request."""

    call: Call
    asked: Asked
    plan: Plan
    prices: PriceTable
    """As they were at admission: what is reserved and what is paid come from the same table."""
    reservation: Reservation
    sticky_key: bytes = b""
    """What the conversation is remembered by; empty when it is not."""
    strategy: Strategy = field(default_factory=Strategy)
    look: Look = field(default_factory=Look)
    comparison_id: str = ""
    decision_id: str = field(default_factory=lambda: new_id("dec"))
    started_at: float = field(default_factory=time.time)
    started: float = field(default_factory=time.monotonic)
    first_token_at: float | None = None
    attempts: list[AttemptRecord] = field(default_factory=list)
    current: AttemptRecord | None = None
    """The running attempt, or the one that ended last."""
    attempt_started: float = 0.0
    head: list[StreamChatResponse] = field(default_factory=list)
    """What a stream has sent until its first token."""
    candidate: Candidate | None = None
    """Who is being asked, or speaks."""
    role: str = ""
    """How the attempts came to run beside others."""
    speaker: AttemptRecord | None = None
    """The attempt whose output the caller gets."""
    rescued_from: list[str] = field(default_factory=list)
    """Targets whose streams broke, and were gone on with by another."""
    skipped: dict[Target, str] = field(default_factory=dict)
    """Why candidates were not asked in their turn."""
    broken: Aside = field(default_factory=Aside)
    lost: Aside = field(default_factory=Aside)
    running_nano: int = 0
    """The most that the candidates which run side by side can cost."""
    running_tokens: int = 0
    """The most tokens they can have."""
    usage: Usage = field(default_factory=Usage)
    finish: Finish = field(default_factory=Finish)
    receipt: list[ParameterReceipt] = field(default_factory=list)
    state: str = ""
    reason: str = ""
    cost: int = 0
    cost_source: str = ""
    price: Price | None = None
    taken: int = 0
    """What providers take, in nano-credits; `cost` is what the caller pays."""
    rounding_pico: int = 0
    """By how much `cost` was rounded up."""
    limit: int | None = None
    """Nano-credits that an estimate did not exceed."""
    parts: list[ChargePart] = field(default_factory=list)
    """The answers it is made of, when there was more than one."""
    baseline: tuple[Price, Margin | None] | None = None
    """What an answer in the background is compared with when it ends."""
    saved: Savings | None = None
    savings: int | None = None
    rate_limits: list[pb.RateLimit] = field(default_factory=list)
    """What limits per minute left to the caller at admission."""
    response_id: str = ""
    """The provider's own id of an answer that is passed on as it is."""
    pending: bool = False
    """It is made in the background: its charge is made when it ends, not here."""
    routed: dict[str, Any] | None = None
    """What outcome and decision say alike, once that is certain."""
    concluded: bool = False
    """Its record is on its way to the journal; nothing may change or end it again."""

    @property
    def target(self) -> Target:
        """Return who is being asked."""
        assert self.candidate is not None
        return self.candidate.target

    @property
    def latency_ms(self) -> int:
        """Return the milliseconds since the request came."""
        return round((time.monotonic() - self.started) * 1000)

    def begin_attempt(self, candidate: Candidate, rescue: str = "") -> str:
        """Note that `candidate` is being asked, and return the attempt's id."""
        self.candidate = candidate
        self.attempt_started = time.monotonic()
        attempt_id = new_id("att")
        self.current = AttemptRecord(
            attempt_id=attempt_id, target=candidate.target.name, rescue=rescue, role=self.role
        )
        self.attempts.append(self.current)
        return attempt_id

    def lane(self, role: str) -> Request:
        """Return this request as a candidate sees it that runs beside others: the record is shared."""
        lane = copy(self)
        lane.role, lane.head = role, []
        return lane

    def adopt(self, lane: Request) -> None:
        """Go on as that candidate."""
        self.candidate, self.current = lane.candidate, lane.current
        self.attempt_started = lane.attempt_started

    def speak(self) -> None:
        """Note that the running attempt is the one whose output the caller gets."""
        self.speaker = self.current

    def take_receipt(self, receipt: Iterable[ParameterReceipt]) -> None:
        """Take in what became of the parameters; what became of them at an earlier speaker stays, too."""
        merged = {(entry.name, entry.outcome): entry for entry in (*self.receipt, *receipt)}
        self.receipt = list(merged.values())

    def name_attempt(self, provider_id: str) -> None:
        """Note how the provider names the running attempt: its bill does, too."""
        if provider_id and self.current is not None:
            self.current.provider_id = provider_id[:RESPONSE_ID_LIMIT]

    def end_attempt(self, state: str, error: RpcError | None = None) -> None:
        """Note how the running attempt ended; an attempt that has ended stays as it is."""
        record = self.current
        if record is None or record.state:
            return
        record.state = state
        record.latency_ms = round((time.monotonic() - self.attempt_started) * 1000)
        if error is not None:
            record.reason = error.reason
            record.message = error.message[:MESSAGE_LIMIT]

    def complete(self, usage: Usage, finish: Finish, produced_bytes: int) -> None:
        """Note a whole answer. Usage that the provider did not report is estimated, and says so."""
        self.state = "complete"
        self.finish = finish
        if usage.input_total or usage.output_total:
            self.usage = usage
            if self.asked.service_tier and not usage.service_tier:
                usage.service_tier = self.asked.service_tier
            if usage.estimated:
                # Whoever counted for the provider took media for text.
                usage.input_total = min(usage.input_total, self._likely_input())
        else:
            self.estimate_usage(produced_bytes)
            self.usage.provider_cost = usage.provider_cost
        self.end_attempt("complete")
        if self.current is not None:
            self.speak()

    def estimate_usage(self, produced_bytes: int) -> None:
        """Fill in the usage of an answer that did not report it."""
        self.usage = Usage(
            input_total=self._likely_input(),
            output_total=likely_tokens(produced_bytes),
            estimated=True,
            service_tier=self.asked.service_tier,
        )

    def _likely_input(self) -> int:
        return self.asked.input_sizes[1] + likely_tokens(self.broken.prefill_bytes)

    @property
    def margin(self) -> Margin | None:
        """Return what is added to the cost of who is being asked."""
        return None if self.candidate is None else self.margin_for(self.candidate.target)

    def margin_for(self, target: Target) -> Margin | None:
        """Return what is added to the cost of a target, for this caller."""
        margins = self.prices.margins
        return margins.of(self.call.identity.organisation_id, target.name) if margins else None

    def part(self, rated: Rated, limit: int | None) -> ChargePart:
        """Return the speaking attempt as a part of the charge."""
        margin = self.margin
        part = ChargePart(
            model=self.target.name,
            usage=self.usage,
            price_version="" if self.price is None else self.price.version,
            margin_version="" if margin is None else margin.version,
            cost_nano_credits=rated.cost,
            amount_nano_credits=rated.sell,
        )
        if limit is not None:
            part.limit_nano_credits = limit
        return part

    def include_others(self, rated: Rated, limit: int | None) -> None:
        """Note what the speaking attempt cost, and add what broken ones and losers did."""
        if self.speaker is not None:
            self.speaker.usage.CopyFrom(self.usage)
            self.speaker.cost = format_nano(rated.sell)
        self.cost, self.taken, self.limit = rated.sell, rated.cost, limit
        self.rounding_pico = rated.rounding_pico
        if self.rescued_from or self.lost.parts:
            self.parts = [*self.lost.parts, *self.broken.parts, self.part(rated, limit)]
            self.limit = None
            self.cost = sum(part.amount_nano_credits for part in self.parts)
            self.taken = sum(part.cost_nano_credits for part in self.parts)
            self.rounding_pico += self.lost.rounding_pico + self.broken.rounding_pico
        if self.rescued_from:
            self.usage = sum_of(self.broken.usage, self.usage)
        guessed = self.lost.usage.estimated or (bool(self.rescued_from) and self.usage.estimated)
        if guessed and self.cost_source != "unknown":
            self.cost_source = "estimate"

    def answer_again(self) -> None:
        """Note that a kept answer is given again: no provider was asked, and nothing is to be paid."""
        answer = self.look.answer
        assert answer is not None
        self.limit = 0
        self.candidate = next(each for each in self.plan.chain if each.target.name == answer.model_used)
        self.state = "complete"
        self.usage.CopyFrom(answer.usage)
        # What the provider took then is not taken again.
        self.usage.provider_cost = ""
        self.finish.CopyFrom(answer.finish)
        self.receipt = list(answer.receipt)

    @property
    def receipts(self) -> list[ParameterReceipt]:
        """Return what became of the parameters, the router's own included."""
        return self.receipt if self.look.receipt is None else [*self.receipt, self.look.receipt]

    def _routed(self) -> dict[str, Any]:
        """Return what outcome and decision say alike of how the request was answered."""
        facts = self.routed
        if facts is None or (self.savings is None) == ("savings" in facts):
            facts = self._route_facts()
            if self.concluded:
                # Nothing changes any more, except that a record which cannot be written takes savings back.
                self.routed = facts
        return facts

    def _route_facts(self) -> dict[str, Any]:
        answer, saved = self.look.answer, self.saved
        facts: dict[str, Any] = {"strategy": self.strategy.name, "cache": self.look.state}
        if answer is not None:
            facts["cached_from"] = answer.decision_id
        if saved is not None and self.savings is not None:
            facts["savings"] = savings_message(saved)
        if not self.strategy.alone and any(attempt.lost for attempt in self.attempts):
            facts["lost_cost"] = format_nano(self.lost.cost)
        return facts

    def outcome(self) -> pb.Outcome:
        """Return what the caller is told at the end."""
        outcome = pb.Outcome(
            request_id=self.call.request_id,
            decision_id=self.decision_id,
            model_used=self.target.name if self.candidate else "",
            provider=self.target.provider if self.candidate else "",
            cost=format_nano(self.cost),
            latency_ms=self.latency_ms,
            savings_estimate="" if self.savings is None else format_nano(self.savings),
            state=self.state,
            rescued_from=self.rescued_from,
            rate_limits=self.rate_limits,
            **self._routed(),
        )
        outcome.usage.CopyFrom(self.usage)
        outcome.finish.CopyFrom(self.finish)
        for entry in self.receipts:
            outcome.receipt.add().CopyFrom(entry)
        return outcome

    def record(self) -> Record:
        """Return the journal's record of this request."""
        last = self.current or (self.attempts[-1] if self.attempts else None)
        attempt_id = new_id("att") if last is None else last.attempt_id
        stored = self.stored(attempt_id) if self.response_id else None
        return Record(
            attempt_id=attempt_id,
            decision_id=self.decision_id,
            organisation_id=self.call.identity.organisation_id,
            lease_id=self.reservation.lease_id,
            at_ms=int(self.started_at * 1000),
            decision=self._decision().SerializeToString(),
            charge=self._charge(attempt_id).SerializeToString() if self.chargeable else b"",
            response=None if stored is None else stored.row(),
        )

    def stored(self, attempt_id: str) -> StoredResponse | None:
        """Return the answer as its provider keeps it."""
        if not (self.response_id and self.asked.stores):
            return None
        stored = StoredResponse(
            organisation_id=self.call.identity.organisation_id,
            # PostgreSQL refuses this character, and with it all that is written at the same time.
            response_id=self.response_id.replace("\0", "")[:RESPONSE_ID_LIMIT],
            decision_id=self.decision_id,
            attempt_id=attempt_id,
            target=self.target.name,
            at=int(self.started_at * 1000),
        )
        if not self.pending:
            return stored
        compared_with, its_margin = self.baseline or (None, None)
        return replace(
            stored,
            pending=True,
            polled_at=stored.at,
            charge=self._charge(attempt_id).SerializeToString(),
            price=_serialised(self.price),
            margin=_serialised(self.margin),
            reserved=self.reservation.amount,
            baseline=_serialised(compared_with),
            baseline_margin=_serialised(its_margin),
        )

    @property
    def chargeable(self) -> bool:
        """Tell whether usage is to be recorded: something was produced, even if it was free."""
        return self.candidate is not None and bool(self.cost_source)

    def _decision(self) -> Decision:
        decision = Decision(
            decision_id=self.decision_id,
            request_id=self.call.request_id,
            requested_model=self.plan.requested,
            task=self.plan.task,
            model_used=self.target.name if self.candidate else "",
            state=self.state,
            reason=self.reason,
            cost=format_nano(self.cost),
            savings_estimate="" if self.savings is None else format_nano(self.savings),
            latency_ms=self.latency_ms,
            key_id=self.call.identity.key_id,
            agent_id=self.asked.chat.agent_id,
            project_id=self.call.identity.project_id,
            run_id=self.asked.chat.run_id,
            streamed=self.asked.feature == "stream",
            estimate=format_nano(self.reservation.amount),
            comparison_id=self.comparison_id,
            **self._routed(),
            model_version=(self.candidate or self.plan.chain[0]).model.version,
        )
        # Copied into their places: given to the constructor they are merged, at twice the price.
        decision.inputs.CopyFrom(inputs_of(self.plan))
        add_candidates(decision.candidates.add, self.plan, self.skipped)
        decision.usage.CopyFrom(self.usage)
        decision.finish.CopyFrom(self.finish)
        for attempt in self.attempts:
            decision.attempts.add().CopyFrom(attempt)
        for entry in self.receipts:
            decision.receipt.add().CopyFrom(entry)
        if self.first_token_at is not None:
            decision.first_token_ms = round((self.first_token_at - self.started) * 1000)
        _set_time(decision.started_at, self.started_at)
        return decision

    def _charge(self, attempt_id: str) -> Charge:
        identity, again = self.call.identity, self.look.answer is not None
        charge = Charge(
            charge_id=attempt_id,
            organisation_id=identity.organisation_id,
            workspace_id=identity.workspace_id,
            lease_id=self.reservation.lease_id,
            hold_id=self.reservation.hold_id,
            amount_nano_credits=self.cost,
            request_id=self.call.request_id,
            decision_id=self.decision_id,
            key_id=identity.key_id,
            user_id=identity.user_id,
            agent_id=self.asked.chat.agent_id,
            project_id=identity.project_id,
            run_id=self.asked.chat.run_id,
            slice_ids=() if self.reservation.drawn is None else self.reservation.drawn.slice_ids,
            provider=self.target.provider,
            model=self.target.name,
            task=self.plan.task,
            price_version=self.price.version if self.price is not None and not again else "",
            cost_source=self.cost_source,
            state=self.state,
            latency_ms=self.latency_ms,
            modality=self.asked.modality,
            cached=again,
            lost_nano_credits=self.lost.cost,
            cost_nano_credits=self.taken,
            rounding_pico_credits=self.rounding_pico,
            parts=self.parts,
        )
        for attempt in self.attempts:
            if attempt.provider_id:
                name = attempt.target.partition("/")[0]
                charge.attempts.add(provider=name, id=attempt.provider_id)
        charge.usage.CopyFrom(sum_of(self.usage, self.lost.usage) if self.lost.parts else self.usage)
        margin = self.margin
        if margin is not None and not again:
            charge.margin_version = margin.version
        if self.limit is not None:
            charge.limit_nano_credits = self.limit
        if self.saved is not None:
            note_savings(charge, self.saved)
        _set_time(charge.at, self.started_at)
        return charge


def savings_message(saved: Savings) -> SavingsMessage:
    """Return savings as callers see them."""
    return SavingsMessage(
        routing=format_nano(saved.routing),
        cache=format_nano(saved.cache),
        prompt_cache_discount=format_nano(saved.prompt_cache),
    )


def _serialised(message: Price | Margin | None) -> bytes:
    return b"" if message is None else message.SerializeToString()


def _set_time(field: Timestamp, at: float) -> None:
    """Write a time, in whole milliseconds. The message's own method checks what cannot be wrong here."""
    seconds, milliseconds = divmod(int(at * 1000), 1000)
    field.seconds = seconds
    field.nanos = milliseconds * 1_000_000
