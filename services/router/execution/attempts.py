"""What every attempt has in common, whether it begins an answer or goes on with one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from omnihub.provider.v1 import provider_service_pb2 as provider

from services.common.rpc import RpcError
from services.router.domain.policy import Candidate
from services.router.domain.transcript import has_token
from services.router.request import Request
from services.router.settings import TimeoutSettings

# The request itself is at fault, or its caller has gone: another provider would say the same.
FINAL = frozenset(
    {
        "INVALID_ARGUMENT",
        "MALFORMED_BODY",
        "PARAMETER_UNSUPPORTED",
        "PROVIDER_REJECTED",
        "CONTENT_FILTERED",
        "CANCELLED",
        "DEADLINE_EXCEEDED",
    }
)
# Asking the same provider again would cost the caller the same wait again.
NOT_AGAIN = frozenset({"PROVIDER_TIMEOUT"})
# Events without any content that are kept until some comes; then they go out all the same.
HEAD_LIMIT = 100


@dataclass(frozen=True, slots=True)
class Opened:
    """A stream whose first content has arrived."""

    head: list[provider.StreamChatResponse]
    stream: Any


async def open_stream(
    stream: AsyncIterator[provider.StreamChatResponse],
    hold_back: int = 0,
    head: list[provider.StreamChatResponse] | None = None,
) -> Opened:
    """Read until the first token, or `hold_back` characters: a failure before it goes unseen.

    Whoever gives a `head` finds in it what has come, also when reading is cancelled.
    """
    head = [] if head is None else head
    opened: Any = stream
    token = False
    try:
        async for event in opened:
            if not head and not event.HasField("start"):
                raise RpcError("PROVIDER_PROTOCOL", "the provider's stream did not begin with its start")
            head.append(event)
            token = token or has_token(event)
            hold_back -= len(event.raw_frame.text) or len(event.part_delta.text)
            if event.HasField("end") or (token and hold_back <= 0) or (not token and len(head) > HEAD_LIMIT):
                return Opened(head, opened)
    except BaseException:
        await opened.aclose()
        raise
    raise RpcError("STREAM_TRUNCATED", "the provider's stream ended before it began")


def provider_id_of(answer: object) -> str:
    """Return how the provider of a whole answer, or of one that begins, names it; empty when it does not."""
    if isinstance(answer, Opened) and answer.head:
        start = answer.head[0].start
        return start.response_id or start.provider_request_id
    if isinstance(answer, provider.ChatResponse):
        return answer.response_id or answer.provider_request_id
    return ""


def address(attempt: provider.Attempt, candidate: Candidate, attempt_id: str) -> None:
    """Write what is different in each attempt."""
    attempt.provider = candidate.target.provider
    attempt.model = candidate.target.model
    attempt.attempt_id = attempt_id
    attempt.timeouts.CopyFrom(timeouts_of(candidate.model.settings.timeouts))


def as_seen(error: RpcError, request: Request) -> RpcError:
    """Return a failure as callers see it: a deadline that is not their own is the limit of the route."""
    if error.reason != "DEADLINE_EXCEEDED" or request.call.remaining_s() == 0 or request.candidate is None:
        return error
    limit = request.candidate.model.settings.timeouts.total_s
    return RpcError(
        "PROVIDER_TIMEOUT",
        f"{request.target.name} did not finish within {limit:g} s",
        metadata={"provider": request.target.provider, "model": request.target.model},
    )


def timeouts_of(settings: TimeoutSettings) -> provider.Timeouts:
    """Return a route's limits for the provider. Not to be changed: it is the same for all its requests."""
    return _timeouts(settings.connect_s, settings.first_token_s, settings.idle_s, settings.total_s)


@lru_cache(maxsize=1000)
def _timeouts(connect_s: float, first_token_s: float, idle_s: float, total_s: float) -> provider.Timeouts:
    return provider.Timeouts(
        connect_ms=round(connect_s * 1000),
        first_token_ms=round(first_token_s * 1000),
        idle_ms=round(idle_s * 1000),
        total_ms=round(total_s * 1000),
    )
