"""I9 as rules of the state machine: a charge costs what its price says, and rounding is kept exactly.

What is expected is computed here, with fractions and from the price as it was made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil
from typing import Any

import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from omnihub.billing.v1.price_pb2 import Margin, Price
from omnihub.billing.v1.usage_pb2 import Charge, ChargePart
from omnihub.common.v1.chat_pb2 import Usage

from services.billing.store.prices import MarginEntry, PriceStore
from services.billing.store.tables import usage_event
from services.billing.store.usage import charge_of
from services.credits.rating import rate_again, sell_of
from tests.support.billing import charge

PICO = 1000
TOKENS = st.integers(0, 40)
PRICES = st.tuples(st.integers(0, 4000), st.integers(0, 6000), st.sampled_from([0, 1, 999, 1000, 2500]))
# Basis points, fixed amount per request, floor, free.
MARGINS = st.tuples(
    st.sampled_from([0, 1, 333, 2500, 10_000]),
    st.integers(0, 3000),
    st.sampled_from([0, 50_500]),
    st.booleans(),
)
PARTS = st.lists(st.tuples(TOKENS, TOKENS, st.one_of(st.none(), st.integers(0, 60))), min_size=1, max_size=3)


@dataclass
class Books:
    """What rated charges have come to, exactly."""

    charges: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Amount, cost and rounding by the id of the charge; the rounding in whole pico-credits."""
    exact: Fraction = Fraction(0)
    rounded: int = 0
    parts: int = 0


class RatingRules(RuleBasedStateMachine):
    """Prices come and change, and charges are rated with whichever was in force."""

    def __init__(self) -> None:
        super().__init__()
        self.prices: list[tuple[str, tuple[int, int, int]]] = []
        self.margins: list[tuple[str, tuple[int, int, int, bool]]] = []
        self.rated = Books()

    @rule(numbers=PRICES)
    def reprice(self: Any, numbers: tuple[int, int, int]) -> None:
        """Put a new version of the price in force; what was rated before stays as it was."""
        version = self.key(f"price{len(self.prices)}")
        price = Price(version=version, input_pico=numbers[0], output_pico=numbers[1], request_pico=numbers[2])

        async def keep() -> None:
            async with self.store.database.transaction() as connection:
                await PriceStore(self.store.database).keep(connection, [price], self.now)

        self.run(keep())
        self.prices.append((version, numbers))

    @rule(numbers=MARGINS)
    def change_margin(self: Any, numbers: tuple[int, int, int, bool]) -> None:
        """Put a new version of the margin in force."""
        version = self.key(f"margin{len(self.margins)}")
        entry = MarginEntry(_margin(version, numbers), source="admin", recorded_at=self.now)

        async def keep() -> None:
            async with self.store.database.transaction() as connection:
                await PriceStore(self.store.database).add_margins(connection, [entry])

        self.run(keep())
        self.margins.append((version, numbers))

    @rule(number=st.integers(50, 90), parts=PARTS, twice=st.booleans())
    @precondition(lambda self: self.prices)
    def charge_for_usage(
        self: Any, number: int, parts: list[tuple[int, int, int | None]], twice: bool
    ) -> None:
        """Rate what was used as the router does, and book it; one answer, or several that are parts."""
        made = self.rate(f"r{number}", parts)
        name = f"r{number}"
        amount, cost = made.amount_nano_credits, made.cost_nano_credits
        fresh = name not in self.model.charges
        if self.model.bodies.setdefault(name, made) != made:
            assert (
                self.attempt(lambda: self.store.settle([made], self.now), twice) == "IDEMPOTENCY_KEY_REUSED"
            )
            return  # I7
        row = (name, amount, "", "", cost, made.rounding_pico_credits)
        assert self.run(self.store.settle([made], self.now)) == self.model.settle([row], self.now) == fresh
        if fresh:
            self.note(made, parts)
        if twice:
            assert self.run(self.store.settle([made], self.now)) == 0

    def rate(self: Any, name: str, parts: list[tuple[int, int, int | None]]) -> Charge:
        """Return the charge for parts, each with its tokens in and out and its limit."""
        price, margin = self.in_force()
        made = charge(self.key(f"c{name}"), 0, self.organisation, provider="p1")
        margin_version = "" if margin is None else margin.version
        rounding = 0
        for tokens_in, tokens_out, limit in parts:
            usage = Usage(input_total=tokens_in, output_total=tokens_out)
            rated = sell_of(usage, price, margin, limit)
            made.amount_nano_credits += rated.sell
            made.cost_nano_credits += rated.cost
            rounding += rated.rounding_pico
            part: Any = made if len(parts) == 1 else made.parts.add()
            part.usage.CopyFrom(usage)
            part.price_version, part.margin_version = price.version, margin_version
            if limit is not None:
                part.limit_nano_credits = limit
            if isinstance(part, ChargePart):
                part.amount_nano_credits, part.cost_nano_credits = rated.sell, rated.cost
        made.rounding_pico_credits = rounding
        return made

    def in_force(self) -> tuple[Price, Margin | None]:
        """Return the newest price and margin."""
        version, numbers = self.prices[-1]
        price = Price(version=version, input_pico=numbers[0], output_pico=numbers[1], request_pico=numbers[2])
        return price, _margin(*self.margins[-1]) if self.margins else None

    def note(self, made: Charge, parts: list[tuple[int, int, int | None]]) -> None:
        """Check a charge against the arithmetic of this file, and add it up."""
        margin = self.margins[-1][1] if self.margins else None
        each = [_exact(self.prices[-1][1], margin, part) for part in parts]
        amount = sum(ceil(sell / PICO) for _, sell in each)
        cost = sum(ceil(taken / PICO) for taken, _ in each)
        assert (made.amount_nano_credits, made.cost_nano_credits) == (amount, cost)
        rounding = sum(ceil(sell / PICO) * PICO - ceil(sell) for _, sell in each)
        self.rated.charges[made.charge_id] = amount, cost, rounding
        self.rated.exact += sum((sell for _, sell in each), Fraction(0))
        self.rated.rounded += amount
        self.rated.parts += len(parts)

    def check_rating(self: Any) -> None:
        """Rate all events of the organisation again, and compare the rounding that was booked. I9."""
        stored = {row.id: row for row in self.run(self.events())}
        charges = [charge_of(stored[charge_id]) for charge_id in self.rated.charges]
        items = [item for each in charges for item in (each, *each.parts)]
        prices, margins = self.run(
            PriceStore(self.store.database).find_versions(
                (item.price_version for item in items), (item.margin_version for item in items)
            )
        )
        for each in charges:
            again = rate_again(each, prices.get, margins.get)
            row = stored[each.charge_id]
            assert (row.amount, row.cost, row.rounding_pico) == self.rated.charges[each.charge_id]
            assert (again.sell, again.cost) == (row.amount, row.cost)
        booked = sum(stored[charge_id].rounding_pico for charge_id in self.rated.charges)
        # Only whole pico-credits are booked: what a share of basis points leaves of one is in no account.
        lost = self.rated.rounded * PICO - self.rated.exact - booked
        assert 0 <= lost <= self.rated.parts

    async def events(self: Any) -> Any:
        """Return the usage events of the organisation."""
        query = sa.select(usage_event).where(usage_event.c.organisation_id == self.organisation)
        async with self.store.database.reading() as connection:
            return (await connection.execute(query)).all()


def _margin(version: str, numbers: tuple[int, int, int, bool]) -> Margin:
    points, fixed, floor, free = numbers
    margin = Margin(version=version, model="*", basis_points=points, floor_pico=floor, free=free)
    if fixed:
        margin.fixed.request_pico = fixed
    return margin


def _exact(
    price: tuple[int, int, int],
    margin: tuple[int, int, int, bool] | None,
    part: tuple[int, int, int | None],
) -> tuple[int, Fraction]:
    """Return what the provider takes and what is charged, in pico-credits, before rounding."""
    tokens_in, tokens_out, limit = part
    cost = tokens_in * price[0] + tokens_out * price[1] + price[2]
    sell = Fraction(cost)
    if margin is not None:
        points, fixed, floor, free = margin
        sell = Fraction(0) if free else max(sell * (10_000 + points) / 10_000 + fixed, Fraction(floor))
    return cost, sell if limit is None else min(sell, Fraction(limit * PICO))
