"""Requests that no provider was asked for, as the journal keeps them."""

from __future__ import annotations

import time

from omnihub.router.v1.decision_pb2 import Decision

from services.common.ids import new_id
from services.common.rpc import Call, RpcError
from services.router.accounting.store import Record
from services.router.asked import Asked
from services.router.domain.catalogue import AUTO
from services.router.domain.policy import Plan
from services.router.domain.record import add_candidates, inputs_of
from services.router.request import MESSAGE_LIMIT


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
        project_id=identity.project_id,
        run_id=chat.run_id,
        streamed=asked.feature == "stream",
    )
    decision.started_at.FromMilliseconds(now_ms)
    if plan is not None:
        decision.task = plan.task
        decision.inputs.CopyFrom(inputs_of(plan))
        add_candidates(decision.candidates.add, plan, {})
    return Record(
        attempt_id=new_id("att"),
        decision_id=decision_id,
        organisation_id=identity.organisation_id,
        lease_id="",
        at_ms=now_ms,
        decision=decision.SerializeToString(),
        charge=b"",
    )
