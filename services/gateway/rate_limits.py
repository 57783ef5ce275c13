"""What limits per minute leave, in the headers that each kind of client reads."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from omnihub.router.v1.router_service_pb2 import RateLimit

from services.common.rpc import RpcError

MEASURES = ("requests", "tokens")
Headers = list[tuple[bytes, bytes]]


def openai_headers(limits: Iterable[RateLimit]) -> Headers:
    """Return `x-ratelimit-limit-requests: 60`, `-remaining-`, and `-reset-` as a duration such as `6m0s`."""
    headers: Headers = []
    for limit in limits:
        measure = limit.measure.encode()
        headers += [
            (b"x-ratelimit-limit-" + measure, _number(limit.limit)),
            (b"x-ratelimit-remaining-" + measure, _number(limit.remaining)),
            (b"x-ratelimit-reset-" + measure, _duration(limit.resets_in_ms)),
        ]
    return headers


def anthropic_headers(limits: Iterable[RateLimit]) -> Headers:
    """Return `anthropic-ratelimit-requests-limit: 60`, `-remaining`, and `-reset` as a moment."""
    headers: Headers = []
    for limit in limits:
        name = b"anthropic-ratelimit-" + limit.measure.encode()
        headers += [
            (name + b"-limit", _number(limit.limit)),
            (name + b"-remaining", _number(limit.remaining)),
            (name + b"-reset", _moment(limit.resets_in_ms)),
        ]
    return headers


def in_error(error: RpcError) -> list[RateLimit]:
    """Return the limit that refused a request, when it is one of these headers'."""
    about = error.metadata
    if (
        error.reason != "RATE_LIMITED"
        or about.get("measure") not in MEASURES
        or about.get("window") != "minute"
    ):
        return []
    return [
        RateLimit(
            measure=about["measure"],
            limit=float(about["limit"]),
            remaining=float(about["remaining"]),
            resets_in_ms=int(about["resets_in_ms"]),
        )
    ]


def _number(value: float) -> bytes:
    return str(int(value)).encode()


def _duration(milliseconds: int) -> bytes:
    minutes, rest = divmod(milliseconds, 60_000)
    seconds, rest = divmod(rest, 1000)
    if minutes:
        return f"{minutes}m{seconds}s".encode()
    return f"{seconds}s".encode() if seconds else f"{rest}ms".encode()


def _moment(milliseconds: int) -> bytes:
    return (datetime.now(UTC) + timedelta(milliseconds=milliseconds)).strftime("%Y-%m-%dT%H:%M:%SZ").encode()
