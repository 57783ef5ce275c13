"""Asking providers: one attempt after the other until one answers.

Before the first token every failure that another attempt could mend is mended here, unseen by
the caller. A failure after it is the caller's to see, with its typed end.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from omnihub.provider.v1 import provider_service_pb2 as provider
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import Call, RpcError
from services.router.admission import Admission
from services.router.domain.policy import Candidate
from services.router.request import Request
from services.router.settings import TimeoutSettings

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

Answer = TypeVar("Answer")
Ask = Callable[[Candidate, str, Call], Awaitable[Answer]]
"""Asks a candidate once, as the attempt of this id, within the call's deadline."""


class Execution:
    """Runs the attempts of a request."""

    def __init__(self, providers: ProviderService, admission: Admission, retry_after_limit_s: float) -> None:
        self._providers = providers
        self._admission = admission
        self._retry_after_limit_s = retry_after_limit_s

    async def answer(self, request: Request) -> provider.ChatResponse:
        """Return the first whole answer. Raises RpcError when no attempt brought one."""
        message = provider.ChatRequest()
        self._fill(message.attempt, request)
        capped = not request.asked.max_tokens

        async def ask(candidate: Candidate, attempt_id: str, call: Call) -> provider.ChatResponse:
            _address(message.attempt, candidate, attempt_id)
            if capped:
                # What is reserved must be all that can come; what is free needs no limit.
                message.attempt.output_cap = (
                    self._admission.output_cap(candidate.model) if candidate.estimate_nano else 0
                )
            return await self._providers.chat(message, call)

        return await self._until_answered(request, ask)

    async def stream(self, request: Request) -> AsyncGenerator[provider.StreamChatResponse, None]:
        """Yield the events of the first attempt that has content, `start` first. Raises RpcError."""
        message = provider.StreamChatRequest()
        self._fill(message.attempt, request)

        async def ask(candidate: Candidate, attempt_id: str, call: Call) -> _Opened:
            _address(message.attempt, candidate, attempt_id)
            return await _open(self._providers.stream_chat(message, call))

        opened = await self._until_answered(request, ask)
        request.first_token_at = time.monotonic()
        async with aclosing(opened.stream):
            for event in opened.head:
                yield event
            try:
                async for event in opened.stream:
                    yield event
            except RpcError as error:
                seen = _seen(error, request)
                request.end_attempt("failed", seen)
                raise seen from None

    async def embed(self, request: Request, message: provider.EmbedRequest) -> provider.EmbedResponse:
        """Return the first answer to `message`. Raises RpcError when no attempt brought one."""

        async def ask(candidate: Candidate, attempt_id: str, call: Call) -> provider.EmbedResponse:
            message.provider = candidate.target.provider
            message.model = candidate.target.model
            message.timeouts.CopyFrom(timeouts_of(candidate.model.settings.timeouts))
            return await self._providers.embed(message, call)

        return await self._until_answered(request, ask)

    def _fill(self, attempt: provider.Attempt, request: Request) -> None:
        """Write what is the same for every attempt: bodies are large, so this is done once."""
        asked = request.asked
        attempt.chat.CopyFrom(asked.chat)
        attempt.raw_body = asked.raw_body
        attempt.wire_format = asked.wire_format
        attempt.include_usage = asked.options.include_usage
        attempt.strict = asked.options.strict
        attempt.headers.update(asked.options.headers)

    async def _until_answered(self, request: Request, ask: Ask[Answer]) -> Answer:
        """Try candidate after candidate until one answers. Raises the last RpcError."""
        last: RpcError | None = None
        for candidate in request.plan.chain:
            if not await self._admission.afford(request, candidate):
                continue
            for pause_s in _pauses(candidate):
                attempt_id = request.begin_attempt(candidate)
                call = request.call.within(candidate.model.settings.timeouts.total_s)
                try:
                    return await ask(candidate, attempt_id, call)
                except RpcError as error:
                    last = _seen(error, request)
                    request.end_attempt("failed", last)
                if last.reason in _FINAL:
                    raise last
                if not await self._wait(request, last, pause_s):
                    break
        # The first candidate has been paid for at admission, so at least that one was asked.
        assert last is not None
        raise last

    async def _wait(self, request: Request, error: RpcError, pause_s: float | None) -> bool:
        """Wait before asking the same provider again. Tells whether that makes sense."""
        if pause_s is None or error.reason in _NOT_AGAIN or error.metadata.get("retryable") != "true":
            return False
        wanted = max(pause_s, error.retry_after_s or 0)
        remaining = request.call.remaining_s()
        if wanted > self._retry_after_limit_s or (remaining is not None and wanted >= remaining):
            return False
        await asyncio.sleep(wanted)
        return True


def _pauses(candidate: Candidate) -> Iterator[float | None]:
    """Yield the pause after each attempt at one provider; None after the last one."""
    for number in range(candidate.model.settings.retries):
        # Full jitter, so that callers who failed together do not return together.
        yield random.uniform(0, min(BACK_OFF_LIMIT_S, BACK_OFF_S * 2**number))
    yield None


@dataclass(frozen=True, slots=True)
class _Opened:
    """A stream whose first content has arrived."""

    head: list[provider.StreamChatResponse]
    stream: Any


async def _open(stream: AsyncIterator[provider.StreamChatResponse]) -> _Opened:
    """Read until the first content: a failure before it can still be rescued."""
    head: list[provider.StreamChatResponse] = []
    opened: Any = stream
    try:
        async for event in opened:
            if not head and not event.HasField("start"):
                raise RpcError("PROVIDER_PROTOCOL", "the provider's stream did not begin with its start")
            head.append(event)
            if not event.HasField("start"):
                return _Opened(head, opened)
    except BaseException:
        await opened.aclose()
        raise
    raise RpcError("STREAM_TRUNCATED", "the provider's stream ended before it began")


def _address(attempt: provider.Attempt, candidate: Candidate, attempt_id: str) -> None:
    """Write what is different in each attempt."""
    attempt.provider = candidate.target.provider
    attempt.model = candidate.target.model
    attempt.attempt_id = attempt_id
    attempt.timeouts.CopyFrom(timeouts_of(candidate.model.settings.timeouts))


def _seen(error: RpcError, request: Request) -> RpcError:
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
    """Return a route's limits for the provider."""
    return provider.Timeouts(
        connect_ms=round(settings.connect_s * 1000),
        first_token_ms=round(settings.first_token_s * 1000),
        idle_ms=round(settings.idle_s * 1000),
        total_ms=round(settings.total_s * 1000),
    )
