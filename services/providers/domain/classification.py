"""What a provider's error means. The vendors' words are in the adapters; the rules are here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from services.providers.domain.failure import Rejection

_BY_STATUS = {
    401: "PROVIDER_CREDENTIAL_REFUSED",
    402: "PROVIDER_BILLING",
    403: "PROVIDER_CREDENTIAL_REFUSED",
    408: "PROVIDER_TIMEOUT",
    409: "PROVIDER_FAILED",
    429: "PROVIDER_RATE_LIMITED",
    498: "PROVIDER_OVERLOADED",
    503: "PROVIDER_OVERLOADED",
    504: "PROVIDER_TIMEOUT",
    529: "PROVIDER_OVERLOADED",
}


# Of the 400 class, those that say that the same request may succeed later.
_PASSING = frozenset({408, 429, 498})


@dataclass(frozen=True, slots=True)
class ErrorFacts:
    """A provider's error object, as far as it could be read."""

    message: str = ""
    kind: str = ""
    code: str = ""
    param: str = ""
    status: int = 0
    """The HTTP status that the error itself names, when it came after a 200."""
    found: bool = False
    """There was an error object at all."""
    flagged: bool = False
    """The error says that moderation refused the content."""
    retry_after_s: float | None = None
    """The error itself says how long to wait."""


@dataclass(frozen=True, slots=True)
class ErrorTable:
    """The vendor's words: codes and types, then phrases of messages in lower case."""

    codes: Mapping[str, str]
    phrases: Sequence[tuple[str, str]] = ()

    def classify(self, status: int, facts: ErrorFacts, retry_after_s: float | None = None) -> Rejection:
        """Return what an error with HTTP `status` (0 when it came after a 200) means."""
        status = status or facts.status
        named = self._named(status, facts)
        return Rejection(
            reason=named or _by_status(status, facts),
            message=facts.message or f"answered with HTTP status {status}",
            code=facts.code or facts.kind,
            param=facts.param,
            http_status=status,
            retry_after_s=facts.retry_after_s if retry_after_s is None else retry_after_s,
            # What a vendor calls a failure of its own is one, whatever its status.
            again=bool(named) or status in _PASSING or not 400 <= status < 500,
        )

    def _named(self, status: int, facts: ErrorFacts) -> str:
        """Return what the error says in words; empty when only its status speaks."""
        if status == 413:  # Some vendors' codes call it a rate limit, but no wait makes a request smaller.
            return "CONTEXT_LENGTH_EXCEEDED"
        for word in (facts.code, facts.kind):
            if word in self.codes:
                return self.codes[word]
        message = facts.message.lower()
        for phrase, reason in self.phrases:
            if phrase in message:
                return reason
        return "CONTENT_FILTERED" if facts.flagged else ""


def _by_status(status: int, facts: ErrorFacts) -> str:
    if status == 404:
        # Without an error object it is the address that is wrong, not the model.
        return "MODEL_NOT_FOUND" if facts.found else "PROVIDER_FAILED"
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    return "PROVIDER_REJECTED" if 400 <= status < 500 else "PROVIDER_FAILED"


def read_error(body: bytes) -> ErrorFacts:
    """Read an error body in any of the shapes seen: an object, a text, or nothing of use."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ErrorFacts(message=_plain_text(body))
    if isinstance(document, list) and document:  # Some vendors wrap it where a stream was asked for.
        document = document[0]
    if not isinstance(document, dict):
        return ErrorFacts()
    error = document.get("error", document.get("detail", document))
    if isinstance(error, str):
        return ErrorFacts(message=error, found=True, retry_after_s=_seconds(document.get("estimated_time")))
    return read_error_object(error) if isinstance(error, dict) else ErrorFacts(message=str(error)[:500])


def read_error_object(error: Mapping[str, Any]) -> ErrorFacts:
    """Read the error object itself."""
    code, status = error.get("code"), error.get("status_code")
    if isinstance(code, int) and status is None:  # Some vendors put the HTTP status here.
        code, status = "", code
    details = error.get("details")
    if isinstance(details, dict) and isinstance(details.get("error_code"), str):
        code = details["error_code"]
    rows = [row for row in details if isinstance(row, dict)] if isinstance(details, list) else []
    extra = error.get("metadata")
    return ErrorFacts(
        message=_text(error.get("message")) or _text(error.get("error")),
        kind=_text(error.get("type")) or _text(error.get("status")),
        code=_text(code) or next((row["reason"] for row in rows if _text(row.get("reason"))), ""),
        param=_text(error.get("param")),
        status=status if isinstance(status, int) and 400 <= status < 600 else 0,
        found="message" in error or "type" in error,
        flagged=isinstance(extra, dict) and bool(extra.get("flagged_input") or extra.get("reasons")),
        retry_after_s=next((_duration(row["retryDelay"]) for row in rows if "retryDelay" in row), None),
    )


def _duration(value: object) -> float | None:
    """Return the seconds of a duration as protocol buffers write it, such as "46s"."""
    return _number(value[:-1]) if isinstance(value, str) and value.endswith("s") else None


def _seconds(value: object) -> float | None:
    return _number(str(value)) if isinstance(value, int | float) else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _plain_text(body: bytes) -> str:
    text = body[:2000].decode("utf-8", "replace").strip()
    return "answered with an HTML page" if text[:1] == "<" else text[:300]


def read_retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return the seconds a provider asks us to wait: milliseconds, seconds or a date; None without."""
    if (milliseconds := _number(headers.get("retry-after-ms", ""))) is not None:
        return milliseconds / 1000
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    if (seconds := _number(value)) is not None:
        return seconds
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - now).total_seconds())


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
