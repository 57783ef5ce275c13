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
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TypeVar

from omnihub.provider.v1 import provider_service_pb2 as provider
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import Call, RpcError
from services.common.rpc.outlet import Accept, offer
from services.router.admission import Admission
from services.router.domain.policy import Candidate
from services.router.domain.strategy import HEDGE
from services.router.domain.transcript import Transcript
from services.router.execution.attempts import (
    FINAL,
    NOT_AGAIN,
    Opened,
    address,
    as_seen,
    open_stream,
    provider_id_of,
    timeouts_of,
)
from services.router.execution.contest import Contest, NobodyLeftError
from services.router.execution.rescue import Rescue
from services.router.health.health import Health
from services.router.request import Request

BACK_OFF_S = 0.2
BACK_OFF_LIMIT_S = 4.0

Answer = TypeVar("Answer")
Ask = Callable[[Request, Candidate, str, Call], Awaitable[Answer]]
"""Asks a candidate once, as the attempt of this id, within the call's deadline."""


@dataclass(slots=True)
class _Turns:
    """Who is asked, and what has been learned."""

    waiting: Iterator[Candidate]
    last: RpcError | None = None
    too_small: int = -1
    """Tokens that the largest candidate so far could hold, once one was too small."""


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
        capped = not request.asked.max_tokens

        def asking() -> Ask[provider.ChatResponse]:
            message = provider.ChatRequest()
            self._fill(message.attempt, request)

            async def ask(
                _: Request, candidate: Candidate, attempt_id: str, call: Call
            ) -> provider.ChatResponse:
                address(message.attempt, candidate, attempt_id)
                if capped:
                    # What is reserved must be all that can come; what is free needs no limit.
                    message.attempt.output_cap = (
                        self._admission.output_cap(candidate.model) if candidate.estimate_nano else 0
                    )
                return await self._providers.chat(message, call)

            return ask

        return await self._until_answered(request, asking)

    async def stream(
        self, request: Request, transcript: Transcript, accept: Accept
    ) -> AsyncGenerator[provider.StreamChatResponse, None]:
        """Yield the events of the first attempt that has content, `start` first, and `end` last.

        What `accept` takes before that is not yielded; it is for `accept` to write it into the transcript.
        Another `start` means that the stream broke and another model speaks; see request.speaker.rescue.
        Raises RpcError.
        """
        opened = await self._until_answered(request, partial(self._opening, request))
        request.first_token_at = time.monotonic()
        request.speak()
        message = None
        add = transcript.add
        while True:
            try:
                async with aclosing(opened.stream):
                    for event in opened.head:
                        add(event)
                        yield event
                    offer(opened.stream, accept)
                    async for event in opened.stream:
                        add(event)
                        yield event
                raise RpcError("STREAM_TRUNCATED", "the provider's stream ended without its finish")
            except RpcError as error:
                failure = self._broke(request, error)
            if message is None:
                message = provider.StreamChatRequest()
                self._fill(message.attempt, request)
            opened = await self._rescue.go_on(request, message, transcript, failure)

    def _opening(self, request: Request) -> Ask[Opened]:
        """Return how a candidate's stream is opened."""
        message = provider.StreamChatRequest()
        self._fill(message.attempt, request)

        async def ask(lane: Request, candidate: Candidate, attempt_id: str, call: Call) -> Opened:
            address(message.attempt, candidate, attempt_id)
            lane.head = []
            stream = self._providers.stream_chat(message, call)
            return await open_stream(stream, candidate.model.settings.hold_back, lane.head)

        return ask

    def _broke(self, request: Request, error: RpcError) -> RpcError:
        """Take in the failure of the speaking attempt, and return it as the caller would see it."""
        failure = as_seen(error, request)
        request.end_attempt("failed", failure)
        self._health.failed(request.target, failure, request.attempt_started, begun=True)
        return failure

    async def embed(self, request: Request, message: provider.EmbedRequest) -> provider.EmbedResponse:
        """Return the first answer to `message`. Raises RpcError when no attempt brought one."""

        def asking() -> Ask[provider.EmbedResponse]:
            own = provider.EmbedRequest()
            own.CopyFrom(message)

            async def ask(_: Request, candidate: Candidate, __: str, call: Call) -> provider.EmbedResponse:
                own.provider = candidate.target.provider
                own.model = candidate.target.model
                own.timeouts.CopyFrom(timeouts_of(candidate.model.settings.timeouts))
                return await self._providers.embed(own, call)

            return ask

        return await self._until_answered(request, asking)

    def _fill(self, attempt: provider.Attempt, request: Request) -> None:
        """Write what is the same for every attempt: bodies are large, so this is done once."""
        asked = request.asked
        attempt.chat.CopyFrom(asked.chat)
        if asked.raw_body:
            attempt.raw_body = asked.raw_body
            attempt.wire_format = asked.wire_format
        options = asked.options
        attempt.include_usage = options.include_usage
        attempt.strict = options.strict
        if headers := options.headers:
            attempt.headers.update(headers)

    async def _until_answered(self, request: Request, asking: Callable[[], Ask[Answer]]) -> Answer:
        """Ask candidates until one answers, as the request's strategy says. Raises the last RpcError.

        `asking` is called for each candidate that runs beside others: none may write into another's message.
        """
        turns = _Turns(self._in_turn(request))
        if not request.strategy.alone:
            answer = await self._contest(request, asking, turns)
            if answer is not None:
                return answer
        ask: Ask[Answer] | None = None
        while (candidate := await self._next(request, turns)) is not None:
            ask = ask or asking()
            try:
                return await self._insist(request, candidate, ask, turns)
            except RpcError as error:
                turns.last = error
                if error.reason in FINAL:
                    raise
        # The first candidate has been paid for at admission, so at least that one was asked.
        assert turns.last is not None
        raise turns.last

    async def _contest(
        self, request: Request, asking: Callable[[], Ask[Answer]], turns: _Turns
    ) -> Answer | None:
        """Let candidates run side by side. Returns None when all have failed and others are left to ask."""
        contest: Contest[Answer] = Contest(request, self._admission, request.strategy.name)
        answer = None
        try:
            for candidate in await self._reserve(request, turns, request.strategy.width):
                contest.begin(partial(self._insist, candidate=candidate, ask=asking(), turns=turns))
            if request.strategy.name == HEDGE:
                answer = await contest.next_answer(self._hedge_after_s(request))
                if answer is None and not contest.over:
                    contest.begin(partial(self._join, base=request, ask=asking(), turns=turns))
            if answer is None:
                answer = await contest.next_answer()
        finally:
            await contest.stop(won=answer is not None)
        if answer is None and contest.failure is not None:
            turns.last = contest.failure
            if contest.failure.reason in FINAL:
                raise contest.failure
        return answer

    async def _reserve(
        self, request: Request, turns: _Turns, number: int, beside: bool = False
    ) -> list[Candidate]:
        """Return so many candidates to run side by side, with the credits for all of them reserved."""
        chosen: list[Candidate] = []
        try:
            while len(chosen) < number and (candidate := await self._next(request, turns)) is not None:
                if (chosen or beside) and candidate.target in request.skipped:
                    # Who is better left alone is no help beside others; its turn comes when they have failed.
                    turns.waiting = chain([candidate], turns.waiting)
                    break
                chosen.append(candidate)
                self._admission.run_beside(request, candidate)
        except BaseException:
            for candidate in chosen:
                self._health.released(candidate.target)
            raise
        return chosen

    async def _join(self, lane: Request, base: Request, ask: Ask[Answer], turns: _Turns) -> Answer:
        """Run beside the candidate that is silent. Raises NobodyLeftError and RpcError."""
        candidates = await self._reserve(base, turns, 1, beside=True)
        if not candidates:
            raise NobodyLeftError
        return await self._insist(lane, candidates[0], ask, turns)

    def _hedge_after_s(self, request: Request) -> float:
        """Return how long the first candidate may be silent before the next one is asked, too."""
        target, streamed = request.plan.chain[0].target, request.asked.feature == "stream"
        wanted_ms = request.strategy.hedge_after_ms
        return (wanted_ms or self._health.measurements.silence_ms(target, streamed)) / 1000

    async def _next(self, request: Request, turns: _Turns) -> Candidate | None:
        """Return who is asked next, paid for; None when nobody is left."""
        for candidate in turns.waiting:
            if turns.too_small >= 0 and self._admission.context_of(request, candidate) <= turns.too_small:
                self._health.released(candidate.target)
                continue
            if await self._admission.afford(request, candidate):
                return candidate
            self._health.released(candidate.target)
            request.skipped[candidate.target] = "the credits for this request do not cover it, too"
        return None

    async def _insist(
        self, request: Request, candidate: Candidate, ask: Ask[Answer], turns: _Turns
    ) -> Answer:
        """Ask one candidate until it answers or asking again makes no sense. Raises RpcError."""
        failures = 0
        while True:
            try:
                return await self._once(request, candidate, ask)
            except RpcError as error:
                last = error
            failures += 1
            if last.reason == "CONTEXT_LENGTH_EXCEEDED":
                turns.too_small = max(turns.too_small, self._admission.context_of(request, candidate))
            if last.reason in FINAL or not await self._wait(request, last, _pause_s(candidate, failures)):
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
            call = request.call.within(candidate.model.settings.timeouts.total_s)
            answer = await ask(request, candidate, attempt_id, call)
        except RpcError as error:
            seen = as_seen(error, request)
            request.end_attempt("failed", seen)
            self._health.failed(candidate.target, seen, began)
            raise seen from None
        except BaseException:
            self._health.left(candidate.target)
            raise
        self._health.succeeded(candidate.target, began)
        request.name_attempt(provider_id_of(answer))
        if isinstance(answer, Opened):
            waited_ms = (time.monotonic() - began) * 1000
            self._health.measurements.first_token(candidate.target, waited_ms)
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


def _pause_s(candidate: Candidate, failures: int) -> float | None:
    """Return the pause after so many failures of one provider; None after the last attempt."""
    if failures > candidate.model.settings.retries:
        return None
    # Full jitter, so that callers who failed together do not return together.
    return random.uniform(0, min(BACK_OFF_LIMIT_S, BACK_OFF_S * 2 ** (failures - 1)))
