"""Questions about routing that no provider is asked for: how, for how much, what is cheapest. Free."""

from __future__ import annotations

import json
from dataclasses import replace

from omnihub.router.v1 import explain_pb2 as pb

from services.common.rpc import Call, RpcError
from services.common.rpc.errors import Violation, to_rpc_error
from services.credits.money import format_nano
from services.credits.rating import bound
from services.router.admission import Admission
from services.router.asked import Asked
from services.router.domain.errors import NoCandidateError, RoutingError
from services.router.domain.policy import Candidate, Plan
from services.router.domain.record import add_candidates, inputs_of
from services.router.domain.routing import RoutingPolicy, Weights
from services.router.planning.planner import TRIED, Draft

CHEAPEST_OTHERS = 4
# Of what is reserved for an answer whose caller names no limit, about so much is used.
LIKELY_SHARE = 4
# A short conversation, for questions without one.
SHORT_INPUT, SHORT_OUTPUT = 100, 500
_CHEAPEST = Weights(1.0, 0.0, 0.0)


class Explaining:
    """Answers from what is in memory, as a request would be answered now."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._planner = admission.planner

    async def route(self, asked: Asked, policy_json: str, call: Call) -> pb.ExplainRouteResponse:
        """Tell how a request would be routed. Raises RoutingError, RpcError."""
        policy = read_policy(policy_json, TRIED) if policy_json else None
        draft = await self._draft(asked, call, policy)
        refusal: RoutingError | None = None
        try:
            plan = self._planner.decide(draft, asked)
        except RoutingError as error:
            if error.plan is None:
                raise
            refusal, plan = error, error.plan
        answer = pb.ExplainRouteResponse(
            inputs=inputs_of(plan),
            chain=[candidate.target.name for candidate in plan.chain],
        )
        add_candidates(answer.candidates.add, plan, {}, whole=True)
        answer.inputs.omitted = 0
        if plan.chain:
            answer.estimated_cost = format_nano(plan.chain[0].estimate_nano or 0)
        for task, probability in draft.detection.probabilities.items():
            answer.tasks.add(task=task, probability=probability)
        if refusal is not None:
            visible = to_rpc_error(refusal)
            answer.refusal.reason, answer.refusal.message = visible.reason, visible.message
            answer.refusal.constraint = visible.metadata.get("constraint", "")
        return answer

    async def estimate(self, asked: Asked, expected_output: int, call: Call) -> pb.EstimateCostResponse:
        """Tell what a request costs at each model that could answer it. Raises RoutingError, RpcError."""
        draft = await self._draft(asked, call)
        plan = self._planner.decide(draft, asked)
        chosen = plan.chain[0]
        estimates = [
            self._estimate(candidate, draft, asked, expected_output, chosen=candidate is chosen)
            for candidate in sorted(plan.chain, key=_price)
        ]
        return pb.EstimateCostResponse(
            input_tokens=draft.question.input_tokens,
            input_tokens_bound=draft.bound_tokens,
            estimates=estimates,
        )

    async def cheapest(self, request: pb.CheapestModelRequest, call: Call) -> pb.CheapestModelResponse:
        """Return the cheapest model that satisfies a request. Raises RoutingError, RpcError."""
        asked = Asked(request.chat, "chat", max_tokens=request.output_tokens or request.chat.max_tokens)
        draft = await self._draft(asked, call)
        empty = not request.chat.messages
        tokens = request.input_tokens or (SHORT_INPUT if empty else draft.bound_tokens)
        question = replace(
            draft.question,
            weights=_CHEAPEST,
            sticky="",
            scored=True,
            input_tokens=request.input_tokens or (SHORT_INPUT if empty else draft.question.input_tokens),
        )
        draft = draft._replace(question=question, bound_tokens=tokens)
        if not asked.max_tokens and empty:
            asked = replace(asked, max_tokens=SHORT_OUTPUT)
        plan = self._planner.decide(draft, asked)
        fitting = [candidate for candidate in plan.chain if candidate.match >= request.least_match]
        if not fitting:
            raise _no_match(plan, request.least_match)
        ranked = [self._estimate(candidate, draft, asked, 0) for candidate in sorted(fitting, key=_price)]
        return pb.CheapestModelResponse(cheapest=ranked[0], others=ranked[1 : 1 + CHEAPEST_OTHERS])

    async def _draft(self, asked: Asked, call: Call, policy: RoutingPolicy | None = None) -> Draft:
        catalogue = self._admission.catalogue
        return await self._planner.draft(asked, call.identity, catalogue, call.request_id, policy=policy)

    def _estimate(
        self, candidate: Candidate, draft: Draft, asked: Asked, expected_output: int, *, chosen: bool = False
    ) -> pb.CostEstimate:
        planner, option = self._planner, candidate.option
        output = expected_output or asked.max_tokens * asked.choices
        if not output:
            output = planner.output_bound(asked, option.model) // LIKELY_SHARE
        price = draft.quotes.prices[option.target, option.model.priced_as]
        margin = draft.quotes.prices.margins.of(draft.organisation_id, option.target.name)
        likely = 0
        if price is not None:
            tokens, tier = draft.question.input_tokens, asked.service_tier
            likely = bound(tokens, output, price, margin, service_tier=tier)
        return pb.CostEstimate(
            target=option.target.name,
            model=option.model.name,
            likely_cost=format_nano(likely),
            largest_cost=format_nano(candidate.estimate_nano or 0),
            chosen=chosen,
        )


def read_policy(policy_json: str, version: str) -> RoutingPolicy:
    """Read a routing policy. Raises RpcError, InvalidPolicyError."""
    try:
        document = json.loads(policy_json)
    except ValueError as error:
        document, text = None, str(error)
    else:
        text = "expected a JSON object"
    if not isinstance(document, dict):
        raise RpcError(
            "INVALID_ARGUMENT", f"policy_json: {text}", violations=[Violation("policy_json", text)]
        )
    return RoutingPolicy.from_document(document, version)


def _price(candidate: Candidate) -> int:
    return candidate.estimate_nano or 0


def _no_match(plan: Plan, least: float) -> NoCandidateError:
    best = max(plan.chain, key=lambda candidate: candidate.match)
    return NoCandidateError(
        f"no model fits {plan.task!r} by {least:g}; the best is {best.target.name} with {best.match:g}",
        model=plan.requested,
        last_excluded=best.target.name,
        constraint="least_match",
    )
