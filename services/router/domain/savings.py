"""What a request saved, and why. Pure.

The baseline is the premium model, without any cache. What separates its price from what was paid is split so
that the parts are exactly the whole:

    prompt cache   own price without the provider's cache - own price with it
    cache          what the answer would have cost, when it was given again
    routing        the rest: a cheaper model, less what candidates that lost have cost
"""

from __future__ import annotations

from dataclasses import dataclass

from omnihub.billing.v1.price_pb2 import Price
from omnihub.common.v1.chat_pb2 import Usage

from services.credits.rating import rate


@dataclass(frozen=True, slots=True)
class Savings:
    """Nano-credits, negative when it cost more."""

    routing: int | None
    """None without a baseline."""
    cache: int
    prompt_cache: int

    @property
    def known(self) -> bool:
        """Tell whether there is anything to say."""
        return self.routing is not None or bool(self.cache or self.prompt_cache)

    @property
    def total(self) -> int:
        """Return all parts together."""
        return (self.routing or 0) + self.cache + self.prompt_cache


def split(usage: Usage, paid: int, price: Price | None, baseline: Price | None, cached: bool) -> Savings:
    """Return what an answer of this `usage` saved. A `cached` one was given again, for nothing."""
    plain = Usage()
    plain.CopyFrom(usage)
    plain.provider_cost = ""
    at_list = 0 if price is None else rate(plain, price)
    plain.cache_read = plain.cache_write = plain.cache_write_1h = 0
    prompt_cache = 0 if price is None else rate(plain, price) - at_list
    otherwise = paid
    if cached and price is not None:
        otherwise = rate(usage, price)
    routing = None if baseline is None else rate(plain, baseline) - otherwise - prompt_cache
    return Savings(routing, otherwise - paid, prompt_cache)
