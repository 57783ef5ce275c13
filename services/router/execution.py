"""Asking providers: one attempt after the other until one answers.

Before the first token every failure that another attempt could mend is mended here, unseen by
the caller. A failure after it is the caller's to see, with its typed end.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import Any, cast

from omnihub.common.v1.chat_pb2 import WireFormat
from omnihub.provider.v1 import provider_service_pb2 as provider
from omnihub.provider.v1.provider_service_api import ProviderService
from omnihub.router.v1 import router_service_pb2 as pb
from omnihub.router.v1.decision_pb2 import AttemptRecord

from services.common.ids import new_id
from services.common.rpc import RpcError
from services.router.domain.policy import Candidate
from services.router.request import Request
from services.router.settings import RouterSettings, TimeoutSettings

BACK_OFF_S = 0.2
BACK_OFF_LIMIT_S = 4.0

# The request itself is at fault, or its caller has gone: another provider would say the same.
_FINAL = {
    "INVALID_ARGUMENT",
    "MALFORMED_BODY",
    "PARAMETER_UNSUPPORTED",
    "PROVIDER_REJECTED",
    "CONTENT_FILTERED",
    "CANCELLED",
    "DEADLINE_EXCEEDED",
}
# Asking the same provider again would cost the caller the same wait again.
_NOT_AGAIN = {"PROVIDER_TIMEOUT"}

Body = pb.ChatRequest | pb.StreamChatRequest


class Execution:
    """Runs the attempts of a request."""

    def __init__(self, providers: ProviderService, settings: RouterSettings) -> None:
        self._providers = providers
        self._settings = settings

    async def answer(self, request: Request, body: Body) -> provider.ChatResponse:
        """Return the first whole answer. Raises RpcError when no attempt brought one."""
        cap = self._settings.default_output_tokens if request.reservation.amount else 0

        async def ask(attempt: provider.Attempt) -> provider.ChatResponse:
            message = provider.ChatRequest(attempt=attempt)
            return await self._providers.chat(message, request.call.within(attempt.timeouts.total_ms / 1000))

        answer = await self.until_answered(request, body, 0 if body.chat.max_tokens else cap, ask)
        return cast(provider.ChatResponse, answer)

    async def stream(self, request: Request, body: Body) -> AsyncGenerator[provider.StreamChatResponse, None]:
        """Yield the events of the first attempt that has some. Raises RpcError."""

        async def ask(attempt: provider.Attempt) -> _Opened:
            message = provider.StreamChatRequest(attempt=attempt)
            call = request.call.within(attempt.timeouts.total_ms / 1000)
            return await _open(self._providers.stream_chat(message, call))

        opened = await self.until_answered(request, body, 0, ask)
        request.first_token_at = time.monotonic()
        async with aclosing(opened.stream):
            for event in opened.head:
                yield event
            try:
                async for event in opened.stream:
                    yield event
            except RpcError as error:
                _end_attempt(request, error)
                raise

    async def until_answered(
        self, request: Request, body: Body, output_cap: int, ask: Callable[[provider.Attempt], Any]
    ) -> Any:
        """Try candidate after candidate. Returns what `ask` returned first."""
        last: RpcError | None = None
        for candidate in request.plan.chain:
            request.candidate = candidate
            for pause_s in self._pauses(candidate):
                attempt = _begin_attempt(request, body, candidate, output_cap)
                try:
                    return await ask(attempt)
                except RpcError as error:
                    _end_attempt(request, error)
                    last = error
                    if error.reason in _FINAL:
                        raise
                    if not await self._wait(error, pause_s):
                        break
        assert last is not None
        raise last

    def _pauses(self, candidate: Candidate) -> Iterator[float | None]:
        """Yield the pause after each attempt at one provider; None after the last one."""
        for number in range(candidate.settings.retries):
            # Full jitter, so that callers who failed together do not return together.
            yield random.uniform(0, min(BACK_OFF_LIMIT_S, BACK_OFF_S * 2**number))
        yield None

    async def _wait(self, error: RpcError, pause_s: float | None) -> bool:
        """Wait before asking the same provider again. Tells whether that makes sense."""
        if pause_s is None or error.reason in _NOT_AGAIN or error.metadata.get("retryable") != "true":
            return False
        wanted = max(pause_s, error.retry_after_s or 0)
        if wanted > self._settings.retry_after_limit_s:
            return False
        await asyncio.sleep(wanted)
        return True


class _Opened:
    """A stream whose first content has arrived."""

    def __init__(self, head: list[provider.StreamChatResponse], stream: Any) -> None:
        self.head = head
        self.stream = stream


async def _open(stream: Any) -> _Opened:
    """Read until the first content: a failure before it can still be rescued."""
    head = []
    try:
        async for event in stream:
            head.append(event)
            if not event.HasField("start"):
                return _Opened(head, stream)
    except BaseException:
        await stream.aclose()
        raise
    raise RpcError("STREAM_TRUNCATED", "the provider's stream ended before it began")


def _begin_attempt(request: Request, body: Body, candidate: Candidate, output_cap: int) -> provider.Attempt:
    attempt_id = new_id("att")
    request.attempts.append(
        AttemptRecord(attempt_id=attempt_id, target=candidate.target.name, state="complete")
    )
    return provider.Attempt(
        provider=candidate.target.provider,
        model=candidate.target.model,
        chat=body.chat,
        raw_body=body.raw_body,
        wire_format=WireFormat.ValueType(body.wire_format),
        include_usage=body.options.include_usage,
        output_cap=output_cap,
        headers=body.options.headers,
        timeouts=timeouts_of(candidate.settings.timeouts),
        strict=body.options.strict,
        attempt_id=attempt_id,
    )


def _end_attempt(request: Request, error: RpcError) -> None:
    record = request.attempts[-1]
    record.state = "cancelled" if error.reason == "CANCELLED" else "failed"
    record.reason = error.reason
    record.message = error.message[:500]
    record.latency_ms = request.latency_ms


def timeouts_of(settings: TimeoutSettings) -> provider.Timeouts:
    """Return a route's limits for the provider."""
    return provider.Timeouts(
        connect_ms=round(settings.connect_s * 1000),
        first_token_ms=round(settings.first_token_s * 1000),
        idle_ms=round(settings.idle_s * 1000),
        total_ms=round(settings.total_s * 1000),
    )
