"""What answers in the background have reserved of limits stays reserved until they end."""

from __future__ import annotations

from typing import Any

from omnihub.billing.v1 import budget_service_pb2 as pb
from omnihub.billing.v1.usage_pb2 import Charge
from omnihub.common.v1.chat_pb2 import Usage

from services.router.accounting.budget_rules import BudgetRules
from services.router.accounting.budgets import Budgets
from services.router.accounting.pending import Pending
from services.router.domain.limits import CONCURRENCY, Drawn, Rule
from tests.support.fakes import FakeBilling, FakeBudgets

ORG = "org_1"
MEASURES = ("credits", "tokens", "requests", CONCURRENCY)
RULES = [Rule(name, "organisation", ORG, name, "", 1000) for name in MEASURES]


class Granting(FakeBudgets):
    """Grants what is needed, and no more."""

    async def acquire_slices(self, request: Any, call: Any) -> pb.AcquireSlicesResponse:
        slices = [
            pb.Slice(slice_id=each.slice_id, granted_total=each.minimum_total) for each in request.slices
        ]
        return pb.AcquireSlicesResponse(slices=slices, expires_in_s=60)


class World:
    def __init__(self) -> None:
        billing: Any = FakeBilling()
        service: Any = Granting()

        async def nothing() -> None:
            return

        self.budgets = Budgets(
            service, lambda changed: BudgetRules(billing, service, changed), "proc_1", nothing
        )
        self.pending = Pending(self.budgets)

    async def begin(self) -> Drawn:
        drawn = await self.budgets.reserve(ORG, RULES, 100, 30)
        self.pending.keep("att_1", drawn, 100)
        return drawn


def kept(drawn: Drawn) -> dict[str, tuple[int, int]]:
    """Return what is reserved and what is spent, by measure."""
    return {draw.slice.rule.measure: (draw.slice.reserved, draw.slice.spent) for draw in drawn.draws}


async def test_all_but_its_slot_stays_reserved() -> None:
    drawn = await World().begin()
    assert kept(drawn) == {"credits": (100, 0), "tokens": (30, 0), "requests": (1, 0), CONCURRENCY: (0, 0)}


async def test_its_end_turns_it_into_what_was_used_once() -> None:
    world = World()
    drawn = await world.begin()
    charge = Charge(charge_id="att_1", amount_nano_credits=40, usage=Usage(input_total=5, output_total=7))
    for _ in range(2):
        world.pending.ended(charge)
        world.pending.ended(Charge(charge_id="att_of_another_process"))
    assert kept(drawn) == {"credits": (0, 40), "tokens": (0, 12), "requests": (0, 1), CONCURRENCY: (0, 0)}


async def test_an_end_that_another_process_saw_counts_as_what_it_was_charged() -> None:
    world = World()
    drawn = await world.begin()
    ends: dict[str, Charge | None] = {}

    async def ends_of(attempts: Any) -> dict[str, Charge | None]:
        assert attempts == ["att_1"]
        return ends

    await world.pending.look(ends_of)
    assert kept(drawn)["credits"] == (100, 0)
    usage = Usage(input_total=5, output_total=7)
    charge = ends["att_1"] = Charge(charge_id="att_1", amount_nano_credits=40, usage=usage)
    await world.pending.look(ends_of)
    # This process may see the same end a moment later.
    world.pending.ended(charge)
    assert kept(drawn) == {"credits": (0, 40), "tokens": (0, 12), "requests": (0, 1), CONCURRENCY: (0, 0)}


async def test_an_end_without_a_record_counts_as_all_that_was_reserved() -> None:
    world = World()
    drawn = await world.begin()

    async def ends_of(attempts: Any) -> dict[str, Charge | None]:
        return dict.fromkeys(attempts)

    await world.pending.look(ends_of)
    assert kept(drawn) == {"credits": (0, 100), "tokens": (0, 30), "requests": (0, 1), CONCURRENCY: (0, 0)}
