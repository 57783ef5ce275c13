"""Questions about usage: from when to when, by what."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime

from services.billing.domain.errors import InvalidFieldError

GROUPS = (
    "model",
    "provider",
    "key",
    "user",
    "workspace",
    "project",
    "agent",
    "run",
    "task",
    "modality",
    "day",
)
# Days are counted from here.
DAY_0 = date(1970, 1, 1)
DEFAULT_PAGE_SIZE = 100
LARGEST_PAGE = 1000

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_RFC_3339 = re.compile(
    r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d{1,6})?\d*([Zz]|[+-]\d{2}:\d{2})", re.ASCII
)
_HELP = "write a date such as 2026-01-31 or RFC 3339 such as 2026-01-31T12:00:00Z"


@dataclass(frozen=True, slots=True)
class Period:
    """From `start`, inclusive, to `end`, exclusive, in microseconds since 1970; None is open."""

    start: int | None
    end: int | None


def microseconds(moment: datetime) -> int:
    """Return a moment as whole microseconds since 1970."""
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def moment(microseconds_since_1970: int) -> datetime:
    """Return the opposite of `microseconds`."""
    seconds, rest = divmod(microseconds_since_1970, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)


def parse_moment(field: str, text: str) -> int | None:
    """Return microseconds since 1970, None for an empty text. Raises InvalidFieldError."""
    if not text:
        return None
    try:
        if _DATE.fullmatch(text):
            return microseconds(datetime.fromisoformat(text).replace(tzinfo=UTC))
        if _RFC_3339.fullmatch(text):
            return microseconds(datetime.fromisoformat(text.upper().replace(" ", "T")))
    except (ValueError, OverflowError):
        pass
    raise InvalidFieldError(field, f"{text[:40]!r} is not a time; {_HELP}")


def parse_period(start: str, end: str) -> Period:
    """Return the period between two texts. Raises InvalidFieldError."""
    period = Period(parse_moment("from", start), parse_moment("to", end))
    if period.start is not None and period.end is not None and period.start > period.end:
        raise InvalidFieldError("from", "is later than `to`; swap them")
    return period


def check_group(group_by: str) -> None:
    """Refuse a grouping that does not exist."""
    if group_by and group_by not in GROUPS:
        raise InvalidFieldError("group_by", f"must be one of {', '.join(GROUPS)}, or empty for one total")


def page_size(requested: int) -> int:
    """Return how many groups a page has."""
    if requested > LARGEST_PAGE:
        raise InvalidFieldError("page_size", f"must be at most {LARGEST_PAGE}")
    return requested or DEFAULT_PAGE_SIZE
