"""Asking providers: one attempt after the other until one answers.

Before the first token every failure that another attempt could mend is mended here, unseen by
the caller. After it the policy of `rescue.py` holds.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import TypeVar

from omnihub.provider.v1 import provider_service_pb2 as provider
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import Call, RpcError
from services.router.admission import Admission
from services.router.attempts import FINAL, NOT_AGAIN, Opened, address, as_seen, open_stream, timeouts_of
from services.router.domain.policy import Candidate
from services.router.domain.transcript import Transcript
from services.router.health import Health
from services.router.request import Request
from services.router.rescue import Rescue

BACK_OFF_S = 0.2
BACK_OFF_LIMIT_S = 4.0

Answer = TypeVar("Answer")
Ask = Callable[[Candidate, str, Call], Awaitable[Answer]]
"""Asks a candidate once, as the attempt of this id, within the call's deadline."""


class Execution:
    """Runs the attempts of a request."""

    def __init__(
        self, providers: ProviderService, admission: Admission, health: Health, retry_after_limit_s: float
    ) -> None:
        self._providers = providers
        self._admission = admission
        self._health = health
        self._rescue = Rescue(providers, admission, health)
        self._retry_after_limit_s = retry_after_limit_s

    async def answer(self, request: Request) -> provider.ChatResponse:
        """Return the first whole answer. Raises RpcError when no attempt brought one."""
        message = provider.ChatRequest()
        self._fill(message.attempt, request)
        capped = not request.asked.max_tokens

        async def ask(candidate: Candidate, attempt_id: str, call: Call) -> provider.ChatResponse:
            address(message.attempt, candidate, attempt_id)
            if capped:
                # What is reserved must be all that can come; what is free needs no limit.
                message.attempt.output_cap = (
                    self._admission.output_cap(candidate.model) if candidate.estimate_nano else 0
                )
            return await self._providers.chat(message, call)

        return await self._until_answered(request, ask)

    async def stream(
        self, request: Request, transcript: Transcript
    ) -> AsyncGenerator[provider.StreamChatResponse, None]:
        """Yield the events of the first attempt that has content, `start` first, and `end` last.

        Another `start` means that the stream broke and another model speaks; see request.speaker.rescue.
        Raises RpcError.
        """
        message = provider.StreamChatRequest()
        self._fill(message.attempt, request)

        async def ask(candidate: Candidate, attempt_id: str, call: Call) -> Opened:
            address(message.attempt, candidate, attempt_id)
            stream = self._providers.stream_chat(message, call)
            return await open_stream(stream, candidate.model.settings.hold_back)

        opened = await self._until_answered(request, ask)
        request.first_token_at = time.monotonic()
        request.speak()
        add = transcript.add
        while True:
            try:
                async with aclosing(opened.stream):
                    for event in opened.head:
                        add(event)
                        yield event
                    async for event in opened.stream:
                        add(event)
                        yield event
                raise RpcError("STREAM_TRUNCATED", "the provider's stream ended without its finish")
            except RpcError as error:
                failure = self._broke(request, error)
            opened = await self._rescue.go_on(request, message, transcript, failure)

    def _broke(self, request: Request, error: RpcError) -> RpcError:
        """Take in the failure of the speaking attempt, and return it as the caller would see it."""
        failure = as_seen(error, request)
        request.end_attempt("failed", failure)
        self._health.failed(request.target, failure, request.attempt_started)
        return failure

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
        # Tokens that the largest candidate so far could hold, once one was too small.
        too_small = -1
        for candidate in self._in_turn(request):
            if too_small >= 0 and self._admission.context_of(request, candidate) <= too_small:
                continue
            if not await self._admission.afford(request, candidate):
                self._health.released(candidate.target)
                continue
            for pause_s in _pauses(candidate):
                try:
                    return await self._once(request, candidate, ask)
                except RpcError as error:
                    last = error
                if last.reason in FINAL:
                    raise last
                if last.reason == "CONTEXT_LENGTH_EXCEEDED":
                    too_small = max(too_small, self._admission.context_of(request, candidate))
                if not await self._wait(request, last, pause_s):
                    break
        # The first candidate has been paid for at admission, so at least that one was asked.
        assert last is not None
        raise last

    def _in_turn(self, request: Request) -> Iterator[Candidate]:
        """Yield the candidates, those that are better left alone last."""
        left_alone = []
        for candidate in request.plan.chain:
            objection = self._health.objection(candidate.target)
            if objection:
                request.skipped[candidate.target] = objection
                left_alone.append(candidate)
            else:
                yield candidate
        yield from left_alone

    async def _once(self, request: Request, candidate: Candidate, ask: Ask[Answer]) -> Answer:
        """Ask once, and take in what the outcome says about the provider. Raises RpcError."""
        attempt_id = request.begin_attempt(candidate)
        began = request.attempt_started
        try:
            answer = await ask(
                candidate, attempt_id, request.call.within(candidate.model.settings.timeouts.total_s)
            )
        except RpcError as error:
            seen = as_seen(error, request)
            request.end_attempt("failed", seen)
            self._health.failed(candidate.target, seen, began)
            raise seen from None
        except BaseException:
            self._health.released(candidate.target)
            raise
        self._health.succeeded(candidate.target, began)
        return answer

    async def _wait(self, request: Request, error: RpcError, pause_s: float | None) -> bool:
        """Wait before asking the same provider again. Tells whether that makes sense."""
        if pause_s is None or error.reason in NOT_AGAIN or error.metadata.get("retryable") != "true":
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
