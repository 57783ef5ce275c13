"""One request on its way through the router: what was asked, what is known, and how it is recorded."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from msgspec import Raw
from omnihub.billing.v1.price_pb2 import Price
from omnihub.billing.v1.usage_pb2 import Charge
from omnihub.common.v1.chat_pb2 import ChatInput, Finish, ParameterReceipt, Usage, WireFormat
from omnihub.router.v1 import router_service_pb2 as pb
from omnihub.router.v1.decision_pb2 import AttemptRecord, Decision

from services.common.ids import new_id
from services.common.rpc import Call, RpcError
from services.credits.money import format_nano
from services.router.domain.catalogue import AUTO, Target
from services.router.domain.estimate import LARGEST, likely_input, likely_tokens
from services.router.domain.policy import Candidate, Plan
from services.router.domain.record import candidates_of, inputs_of
from services.router.leases import Reservation
from services.router.prices import PriceTable
from services.router.response_store import StoredResponse
from services.router.store import Record

# A decision keeps what helps to explain it, not a provider's whole error page.
MESSAGE_LIMIT = 500
# As the column that keeps it.
RESPONSE_ID_LIMIT = 256
_COUNTS = tuple(
    counted.name for counted in Usage.DESCRIPTOR.fields if counted.cpp_type == counted.CPPTYPE_UINT32
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a caller wants. Read from the message once: each look at a bytes field copies it."""

    chat: ChatInput
    feature: str
    """chat, stream or embed: what a provider must offer."""
    raw_body: bytes = b""
    wire_format: WireFormat.ValueType = WireFormat.WIRE_FORMAT_UNSPECIFIED
    options: pb.CallOptions = field(default_factory=pb.CallOptions)
    max_tokens: int = 0
    """The caller's own limit of output tokens for each choice; 0 without one."""
    choices: int = 1
    stateful: bool = False
    """The provider knows more of the conversation than the body holds."""
    vendor_bound: bool = False
    """Only a provider that keeps state can serve it."""
    previous: str = ""
    """Id of the stored answer it goes on from."""
    pinned: str = ""
    """The provider that keeps it."""
    stores: bool = False
    """The provider keeps the answer."""
    background: bool = False
    """The answer may come later, under its id."""
    json: bool = False
    """The answer is to be a JSON document: half of one cannot be gone on with."""
    tools: bool = False
    """A foreign body offers tools."""
    messages: Raw = field(default_factory=Raw)
    """The conversation of a foreign body, undecoded."""
    task: str = ""
    """What kind of work the rpc itself says this is; empty when it does not."""

    @property
    def modality(self) -> str:
        """Return the kind of work, as usage is grouped."""
        return "embeddings" if self.feature == "embed" else "chat"


@dataclass(slots=True)
class Broken:
    """What the broken streams of a request have cost, before the one that is running."""

    usage: Usage = field(default_factory=Usage)
    cost: int = 0
    prefill_bytes: int = 0
    """Size of the text that the running attempt was given to go on from."""
    reason: str = ""
    """What broke the last one."""

    def add(self, usage: Usage, cost: int) -> None:
        """Take in one more."""
        self.usage = _sum(self.usage, usage)
        self.cost += cost


def _sum(one: Usage, other: Usage) -> Usage:
    """Return both usages together. What providers say they charged is not summed up: it is in the cost."""
    total = Usage(estimated=one.estimated or other.estimated)
    for count in _COUNTS:
        setattr(total, count, min(LARGEST, getattr(one, count) + getattr(other, count)))
    return total


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
    decision_id: str = field(default_factory=lambda: new_id("dec"))
    started_at: float = field(default_factory=time.time)
    started: float = field(default_factory=time.monotonic)
    first_token_at: float | None = None
    attempts: list[AttemptRecord] = field(default_factory=list)
    attempt_started: float = 0.0
    candidate: Candidate | None = None
    """Who is being asked, or speaks."""
    speaker: AttemptRecord | None = None
    """The attempt whose output the caller gets."""
    rescued_from: list[str] = field(default_factory=list)
    """Targets whose streams broke, and were gone on with by another."""
    skipped: dict[Target, str] = field(default_factory=dict)
    """Why candidates were not asked in their turn."""
    broken: Broken = field(default_factory=Broken)
    usage: Usage = field(default_factory=Usage)
    finish: Finish = field(default_factory=Finish)
    receipt: list[ParameterReceipt] = field(default_factory=list)
    state: str = ""
    reason: str = ""
    cost: int = 0
    cost_source: str = ""
    price: Price | None = None
    savings: int | None = None
    response_id: str = ""
    """The provider's own id of an answer that is passed on as it is."""
    pending: bool = False
    """It is made in the background: its charge is made when it ends, not here."""
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
        self.attempts.append(
            AttemptRecord(attempt_id=attempt_id, target=candidate.target.name, rescue=rescue)
        )
        return attempt_id

    def speak(self) -> None:
        """Note that the running attempt is the one whose output the caller gets."""
        self.speaker = self.attempts[-1]

    def take_receipt(self, receipt: Iterable[ParameterReceipt]) -> None:
        """Take in what became of the parameters; what became of them at an earlier speaker stays, too."""
        merged = {(entry.name, entry.outcome): entry for entry in (*self.receipt, *receipt)}
        self.receipt = list(merged.values())

    def end_attempt(self, state: str, error: RpcError | None = None) -> None:
        """Note how the running attempt ended; an attempt that has ended stays as it is."""
        if not self.attempts or self.attempts[-1].state:
            return
        record = self.attempts[-1]
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
            if usage.estimated:
                # Whoever counted for the provider took media for text.
                usage.input_total = min(usage.input_total, self._likely_input())
        else:
            self.estimate_usage(produced_bytes)
            self.usage.provider_cost = usage.provider_cost
        self.end_attempt("complete")
        if self.attempts:
            self.speak()

    def estimate_usage(self, produced_bytes: int) -> None:
        """Fill in the usage of an answer that did not report it."""
        self.usage = Usage(
            input_total=self._likely_input(),
            output_total=likely_tokens(produced_bytes),
            estimated=True,
        )

    def _likely_input(self) -> int:
        asked = self.asked
        return likely_input(asked.raw_body, asked.chat) + likely_tokens(self.broken.prefill_bytes)

    def include_broken(self, own_cost: int) -> None:
        """Note what the speaking attempt cost, and add what the broken ones before it did."""
        if self.speaker is not None:
            self.speaker.usage.CopyFrom(self.usage)
            self.speaker.cost = format_nano(own_cost)
        self.cost = own_cost + self.broken.cost
        if self.rescued_from:
            self.usage = _sum(self.broken.usage, self.usage)
            if self.usage.estimated:
                self.cost_source = "estimate"

    def outcome(self) -> pb.Outcome:
        """Return what the caller is told at the end."""
        return pb.Outcome(
            request_id=self.call.request_id,
            decision_id=self.decision_id,
            model_used=self.target.name if self.candidate else "",
            provider=self.target.provider if self.candidate else "",
            cost=format_nano(self.cost),
            latency_ms=self.latency_ms,
            savings_estimate="" if self.savings is None else format_nano(self.savings),
            usage=self.usage,
            finish=self.finish,
            receipt=self.receipt,
            state=self.state,
            rescued_from=self.rescued_from,
        )

    def record(self) -> Record:
        """Return the journal's record of this request."""
        attempt_id = self.attempts[-1].attempt_id if self.attempts else new_id("att")
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
            response_id=self.response_id[:RESPONSE_ID_LIMIT],
            decision_id=self.decision_id,
            attempt_id=attempt_id,
            target=self.target.name,
            at=int(self.started_at * 1000),
        )
        if not self.pending:
            return stored
        return replace(
            stored,
            pending=True,
            polled_at=stored.at,
            charge=self._charge(attempt_id).SerializeToString(),
            price=b"" if self.price is None else self.price.SerializeToString(),
            reserved=self.reservation.amount,
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
            attempts=self.attempts,
            model_used=self.target.name if self.candidate else "",
            state=self.state,
            reason=self.reason,
            usage=self.usage,
            finish=self.finish,
            cost=format_nano(self.cost),
            savings_estimate="" if self.savings is None else format_nano(self.savings),
            latency_ms=self.latency_ms,
            receipt=self.receipt,
            key_id=self.call.identity.key_id,
            agent_id=self.asked.chat.agent_id,
            streamed=self.asked.feature == "stream",
            estimate=format_nano(self.reservation.amount),
            model_version=(self.candidate or self.plan.chain[0]).model.version,
        )
        if self.first_token_at is not None:
            decision.first_token_ms = round((self.first_token_at - self.started) * 1000)
        decision.started_at.FromMilliseconds(int(self.started_at * 1000))
        decision.inputs.CopyFrom(inputs_of(self.plan))
        decision.candidates.extend(candidates_of(self.plan, self.skipped))
        return decision

    def _charge(self, attempt_id: str) -> Charge:
        identity = self.call.identity
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
            provider=self.target.provider,
            model=self.target.name,
            task=self.plan.task,
            usage=self.usage,
            price_version=self.price.version if self.price is not None else "",
            cost_source=self.cost_source,
            state=self.state,
            savings_nano_credits=self.savings or 0,
            latency_ms=self.latency_ms,
            modality=self.asked.modality,
        )
        charge.at.FromMilliseconds(int(self.started_at * 1000))
        return charge


def refusal_record(
    call: Call, asked: Asked, plan: Plan | None, failure: RpcError, decision_id: str
) -> Record:
    """Return the journal's record of a request that no provider was asked for. It costs nothing."""
    chat, identity, now_ms = asked.chat, call.identity, int(time.time() * 1000)
    decision = Decision(
        decision_id=decision_id,
        request_id=call.request_id,
        requested_model=chat.model or AUTO,
        state="refused",
        reason=failure.reason,
        message=failure.message[:MESSAGE_LIMIT],
        cost="0",
        key_id=identity.key_id,
        agent_id=chat.agent_id,
        streamed=asked.feature == "stream",
    )
    decision.started_at.FromMilliseconds(now_ms)
    if plan is not None:
        decision.task = plan.task
        decision.inputs.CopyFrom(inputs_of(plan))
        decision.candidates.extend(candidates_of(plan, {}))
    return Record(
        attempt_id=new_id("att"),
        decision_id=decision_id,
        organisation_id=identity.organisation_id,
        lease_id="",
        at_ms=now_ms,
        decision=decision.SerializeToString(),
        charge=b"",
    )
