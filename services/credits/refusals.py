"""What billing says to a charge, for those who carry charges to it."""

from __future__ import annotations

# Of a charge that it will never book: asking again is of no use, and it must not hold up others.
NEVER_BOOKED = ("INVALID_ARGUMENT", "IDEMPOTENCY_KEY_REUSED")
