"""Windows of limits: from when to when a moment's usage counts. UTC, microseconds since 1970.

A pure library: the process that spends and the one that books must agree to the microsecond.
"""

from __future__ import annotations

from datetime import UTC, datetime

SECOND = 1_000_000
_LENGTHS = {"minute": 60 * SECOND, "hour": 3600 * SECOND, "day": 86_400 * SECOND, "week": 7 * 86_400 * SECOND}
# 1970 began on a Thursday; weeks begin on Mondays.
_FIRST_MONDAY = 4 * 86_400 * SECOND
# Windows without an end, and what has no window at all.
ENDLESS = frozenset({"total", "lifetime", ""})


def window_start(window: str, at: int) -> int:
    """Return when the window that holds the moment `at` began; 0 for one without an end."""
    if window in ENDLESS:
        return 0
    if window == "month":
        return _microseconds(_moment(at).replace(day=1, hour=0, minute=0, second=0, microsecond=0))
    offset = _FIRST_MONDAY if window == "week" else 0
    length = _LENGTHS[window]
    return (at - offset) // length * length + offset


def window_end(window: str, at: int) -> int | None:
    """Return when the window that holds the moment `at` ends, exclusive; None for one without an end."""
    if window in ENDLESS:
        return None
    start = window_start(window, at)
    if window != "month":
        return start + _LENGTHS[window]
    first = _moment(start)
    year, month = (first.year + 1, 1) if first.month == 12 else (first.year, first.month + 1)
    return _microseconds(first.replace(year=year, month=month))


def _moment(at: int) -> datetime:
    return datetime.fromtimestamp(at // SECOND, UTC)


def _microseconds(moment: datetime) -> int:
    return int(moment.timestamp()) * SECOND
