"""Requests that rely on what a provider keeps: who can serve them, and how long they may be."""

from __future__ import annotations

from dataclasses import replace

from omnihub.billing.v1.price_pb2 import Price

from services.router.domain.catalogue import Catalogue, Model
from services.router.domain.errors import NoCandidateError
from services.router.domain.policy import Candidate, Exclusion, Plan

FEATURE = "responses"
# Used where nobody says how much a model takes: no less than the largest do.
UNKNOWN_CONTEXT = 1_000_000
_KEEPS_NOTHING = Exclusion("state", "it keeps no state of conversations")
_KEEPS_ANOTHER = Exclusion("state", "it does not keep the answer to go on from")


def hidden_input(model: Model, price: Price) -> int:
    """Return a number of tokens that a conversation kept by the provider does not exceed."""
    return model.context_length or price.context_length or UNKNOWN_CONTEXT


def pinned_to(plan: Plan, provider: str) -> Plan:
    """Return the plan with only the provider that keeps the answer to go on from. Raises NoCandidateError."""
    chain = tuple(c for c in plan.chain if c.target.provider == provider)
    if not chain:
        raise NoCandidateError(
            f"the answer to go on from is kept by {provider}, to which {plan.requested!r} does not lead; "
            "name one of its models",
            model=plan.requested,
        )
    return _only(plan, chain, _KEEPS_ANOTHER)


def keeping_state(plan: Plan, catalogue: Catalogue) -> Plan:
    """Return the plan with only the providers that keep state.

    Where none does it stays as it is: the provider's refusal then names the field that relies on state.
    """
    chain = tuple(c for c in plan.chain if FEATURE in catalogue.providers[c.target.provider].features)
    if not chain:
        return plan
    return _only(plan, chain, _KEEPS_NOTHING)


def _only(plan: Plan, chain: tuple[Candidate, ...], why: Exclusion) -> Plan:
    """Return the plan with a part of its chain."""
    others = (c._replace(score=0.0, exclusion=why) for c in plan.chain if c not in chain)
    return replace(
        plan,
        chain=chain,
        decided=chain,
        excluded=(*plan.excluded, *others),
        stuck=plan.stuck and chain[0] is plan.chain[0],
    )
