"""How the candidates of a plan are asked: one after the other, by weights, or side by side. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from omnihub.common.v1.chat_pb2 import ChatInput
from omnihub.router.v1.router_service_pb2 import CallOptions

from services.router.domain.errors import RoutingError
from services.router.domain.policy import Plan
from services.router.domain.split import choose
from services.router.settings import RouteSettings

FAILOVER, FAILOVER_CHEAPEST, SPLIT, HEDGE, RACE = "failover", "failover_cheapest", "split", "hedge", "race"
# What `failover_cheapest` leaves as it is configured: the primary and its backup.
_FIXED = 2


class ConflictingOptionsError(RoutingError):
    """Two wishes of a request exclude each other."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """How one request's candidates are asked."""

    name: str = FAILOVER
    width: int = 1
    """How many begin at once."""
    hedge_after_ms: int = 0
    """For a hedge: how long the first may be silent; 0 for what was measured of it."""

    @property
    def alone(self) -> bool:
        """Tell whether never more than one candidate runs."""
        return self.name not in (HEDGE, RACE)


_STRATEGIES = {name: Strategy(name) for name in (FAILOVER, FAILOVER_CHEAPEST, SPLIT)}


def strategy_of(options: CallOptions, chat: ChatInput, route: RouteSettings) -> Strategy:
    """Return what a request asks for, or else its route. Raises ConflictingOptionsError."""
    name = options.strategy
    if chat.parallel:
        if name not in ("", RACE):
            raise ConflictingOptionsError(
                f"parallel: true asks for a race and strategy asks for {name}; send one of them",
                field="parallel",
            )
        name = RACE
    name = name or route.strategy
    if options.hedge_after_ms and name != HEDGE:
        raise ConflictingOptionsError(
            f"hedge_after_ms needs the strategy hedge, not {name}; send x-omnihub-strategy: hedge with it",
            field="hedge_after_ms",
        )
    if name == RACE:
        return Strategy(RACE, width=options.race_width or route.race_width)
    if name == HEDGE:
        return Strategy(HEDGE, hedge_after_ms=options.hedge_after_ms or route.hedge_after_ms)
    return _STRATEGIES[name]


def arranged(plan: Plan, strategy: Strategy, session: str) -> Plan:
    """Return the plan with its chain in the order of the strategy."""
    chain = plan.chain
    if strategy.name == SPLIT and len(chain) > 1:
        weights = [candidate.model.weight_of(candidate.target) for candidate in chain]
        first = chain[choose(weights, plan.requested, session)]
        return replace(plan, chain=(first, *(candidate for candidate in chain if candidate is not first)))
    if strategy.name == FAILOVER_CHEAPEST and len(chain) > _FIXED + 1:
        rest = sorted(chain[_FIXED:], key=lambda candidate: candidate.estimate_nano or 0)
        return replace(plan, chain=(*chain[:_FIXED], *rest))
    return plan
