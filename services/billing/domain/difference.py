"""What a check of the books finds."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Difference:
    """Two sides that should be equal: what was derived anew, and what is stored."""

    rule: str
    subject: str
    expected: str
    found: str


@dataclass(slots=True)
class Report:
    """What one check saw."""

    differences: list[Difference] = field(default_factory=list)
    transactions: int = 0
    entries: int = 0
    usage_events: int = 0
    blocks: int = 0
    unsealed: int = 0

    @property
    def ok(self) -> bool:
        """Tell whether everything adds up."""
        return not self.differences
