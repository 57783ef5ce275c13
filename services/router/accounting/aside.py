"""What attempts have cost whose output is not the answer."""

from __future__ import annotations

from dataclasses import dataclass, field

from omnihub.billing.v1.usage_pb2 import ChargePart
from omnihub.common.v1.chat_pb2 import Usage

from services.router.domain.estimate import LARGEST

_COUNTS = tuple(
    counted.name for counted in Usage.DESCRIPTOR.fields if counted.cpp_type == counted.CPPTYPE_UINT32
)


# Most requests have nothing aside. It is replaced, never written to.
_NOTHING = Usage()


@dataclass(slots=True)
class Aside:
    """What attempts have cost whose output is not the answer: broken streams, and candidates that lost."""

    usage: Usage = field(default_factory=lambda: _NOTHING)
    cost: int = 0
    rounding_pico: int = 0
    """By how much that was rounded up."""
    parts: list[ChargePart] = field(default_factory=list)
    prefill_bytes: int = 0
    """Size of the text that the running attempt was given to go on from a broken stream."""
    reason: str = ""
    """What broke the last stream."""

    def add(self, part: ChargePart, usage: Usage, rounding_pico: int) -> None:
        """Take in one more."""
        self.usage = sum_of(self.usage, usage)
        self.cost += part.amount_nano_credits
        self.rounding_pico += rounding_pico
        self.parts.append(part)


def sum_of(one: Usage, other: Usage) -> Usage:
    """Return both usages together. What providers say they charged is not summed up: it is in the cost."""
    total = Usage(estimated=one.estimated or other.estimated)
    for count in _COUNTS:
        setattr(total, count, min(LARGEST, getattr(one, count) + getattr(other, count)))
    return total
