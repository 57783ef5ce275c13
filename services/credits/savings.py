"""Savings: what a request would have cost at a baseline minus what it did cost, split by cause.

A memo: it never moves money, and may be negative. amount + routing + cache + prompt_cache = baseline.
"""

from __future__ import annotations

from typing import NamedTuple

from omnihub.billing.v1.price_pb2 import Margin, Price
from omnihub.billing.v1.usage_pb2 import Charge
from omnihub.common.v1.chat_pb2 import Usage

from services.credits.rating import priced, round_up, with_margin

# Changes with the rules below; stored with every charge.
FORMULA = "savings-1"


class Savings(NamedTuple):
    """Nano-credits, by cause."""

    baseline: int
    routing: int
    """By asking another model than the baseline."""
    prompt_cache: int
    """By tokens that the provider kept."""
    cache: int = 0
    """By answers that this platform kept."""

    @property
    def total(self) -> int:
        """Return the sum over all causes."""
        return self.routing + self.prompt_cache + self.cache


def savings_of(
    usage: Usage,
    amount: int,
    answered: tuple[Price, Margin | None],
    baseline: tuple[Price, Margin | None] | None,
) -> Savings:
    """Return what was saved on `usage`, for which `amount` nano-credits were charged.

    Both prices count as they are listed, also where the provider said what it charged. Without a baseline
    the model that answered is its own.
    """
    plain, prompt_cache = usage, 0
    if usage.cache_read or usage.cache_write:
        plain = Usage()
        plain.CopyFrom(usage)
        plain.cache_read = plain.cache_write = plain.cache_write_1h = 0
        prompt_cache = _listed(plain, *answered) - _listed(usage, *answered)
    at_baseline = amount + prompt_cache if baseline is None else _listed(plain, *baseline)
    return Savings(at_baseline, at_baseline - amount - prompt_cache, prompt_cache)


def note_savings(charge: Charge, saved: Savings) -> None:
    """Write savings into a charge."""
    charge.savings_nano_credits = saved.total
    charge.baseline_nano_credits = saved.baseline
    charge.savings_routing_nano_credits = saved.routing
    charge.savings_cache_nano_credits = saved.cache
    charge.savings_prompt_cache_nano_credits = saved.prompt_cache
    charge.savings_formula = FORMULA


def _listed(usage: Usage, price: Price, margin: Margin | None) -> int:
    cost = priced(usage, price)
    if margin is None:
        return round_up(cost)
    return round_up(with_margin(cost, priced(usage, margin.fixed), margin))
