"""Limits and answers in the background: what was reserved stays reserved until the answer ends.

Kept by the process that admitted the request. When it dies its slices end, as after any death, and an answer
that is still being made then counts when it ends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from omnihub.billing.v1.usage_pb2 import Charge

from services.router.accounting.budgets import Budgets
from services.router.domain.limits import Drawn


@dataclass(frozen=True, slots=True)
class _Reserved:
    drawn: Drawn
    nano: int
    tokens: int


class Pending:
    """What answers in the background have reserved of limits, by the attempt that makes them."""

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets
        self._reserved: dict[str, _Reserved] = {}

    def keep(self, attempt_id: str, drawn: Drawn, nano: int) -> None:
        """Keep what a request has reserved; its slot is free, for the request itself has ended."""
        self._budgets.free_slots(drawn)
        self._reserved[attempt_id] = _Reserved(drawn, nano, drawn.tokens)

    def ended(self, charge: Charge) -> None:
        """Turn what is reserved into what was used, if it is kept here."""
        reserved = self._reserved.pop(charge.charge_id, None)
        if reserved is not None:
            tokens = charge.usage.input_total + charge.usage.output_total
            self._budgets.spend(reserved.drawn, charge.amount_nano_credits, tokens)

    async def look(self, ends_of: Callable[[Sequence[str]], Awaitable[Mapping[str, Charge | None]]]) -> None:
        """Let go of answers whose end another process has seen. Without a charge all of it counts as used."""
        if not self._reserved:
            return
        for attempt_id, charge in (await ends_of(list(self._reserved))).items():
            if charge is not None:
                self.ended(charge)
            elif (reserved := self._reserved.pop(attempt_id, None)) is not None:
                self._budgets.spend(reserved.drawn, reserved.nano, reserved.tokens)
