"""Amounts: decimals in public messages, whole nano-credits inside, whole pico-credits per unit in prices."""

import math
from decimal import ROUND_CEILING, Context, Decimal, Inexact, InvalidOperation, Overflow

NANO = 10**9
PICO_PER_NANO = 1000
# What fits a signed 64-bit column.
LARGEST_NANO = 2**63 - 1

# Refuses digits it would have to drop, instead of dropping them.
_EXACT = Context(prec=40, traps=[InvalidOperation, Overflow, Inexact])
_WIDE = Context(prec=60)


def parse_nano(amount: str) -> int:
    """Return `"0.05"` credits as 50,000,000 nano-credits. Raises ValueError for what is no such amount."""
    try:
        scaled = _EXACT.multiply(Decimal(amount), Decimal(NANO))
    except Inexact:
        raise ValueError(f"{amount[:40]!r} has more digits than an amount can have") from None
    except ArithmeticError:
        raise ValueError(f"{amount[:40]!r} is not an amount; write a decimal such as 0.05") from None
    if not scaled.is_finite():
        raise ValueError(f"{amount[:40]!r} is not an amount; write a decimal such as 0.05")
    if abs(scaled) > LARGEST_NANO:
        raise ValueError(f"{amount[:40]!r} is larger than any amount")
    if scaled != int(scaled):
        raise ValueError(f"{amount[:40]!r} is finer than a nano-credit (nine decimals)")
    return int(scaled)


def nano_of(amount: float) -> int:
    """Return a JSON number of credits in whole nano-credits. Raises ValueError as `parse_nano` does.

    The shortest decimal that means this number is the one its sender wrote.
    """
    return parse_nano(repr(float(amount)))


def limit_nano(amount: float) -> int:
    """Return a limit in credits as whole nano-credits, rounded down: a limit is never exceeded."""
    return math.floor(Decimal(repr(float(amount))) * NANO)


def format_nano(amount: int) -> str:
    """Return 50,000,000 nano-credits as `"0.05"`: exact, without an exponent."""
    if amount < 0:
        return f"-{format_nano(-amount)}"
    whole, fraction = divmod(amount, NANO)
    return f"{whole}.{fraction:09d}".rstrip("0") if fraction else str(whole)


def pico_to_nano(amount: int) -> int:
    """Round a charge up to whole nano-credits, once per charge."""
    return -(-amount // PICO_PER_NANO)


def decimal_to_nano_up(amount: Decimal) -> int:
    """Round a provider's own decimal cost up to whole nano-credits."""
    return int(_WIDE.multiply(amount, Decimal(NANO)).to_integral_value(ROUND_CEILING))
