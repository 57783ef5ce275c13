"""Calls that are cancelled, late or many at a time.

What a cancelled call does inside a server cannot be seen from outside. What it holds can: calls
that follow wait for it.
"""

from __future__ import annotations

import asyncio

from omnihub.provider.v1 import provider_service_pb2 as pb

from services.common.ids import new_id
from services.common.rpc.probe import Reply
from services.providers.conformance.failures import check_details, expect
from services.providers.conformance.kit import Group, SkippedError, Subject, require
from services.providers.conformance.streams import content_of_stream, judge
from services.providers.conformance.words import text_of

GROUP = Group("calls")
# More than the threads or connections that a server usually has.
ABANDONED = 20
PARALLEL = 10
LONG_QUESTION = "Repeat this list from its first to its last word: " + " ".join(
    f"harbour-{number}" for number in range(400)
)
# How much longer than its first time a call may take.
PATIENCE = 5
PATIENCE_S = 10.0


async def _baseline_s(subject: Subject) -> float:
    """Return how long a call may take when nothing disturbs it."""
    reply = await subject.ask(await subject.attempt())
    require(reply.status.ok, "ANSWER-1", f"a plain question ended with {reply.status}")
    return max(PATIENCE_S, PATIENCE * reply.seconds)


async def _works_on(subject: Subject, limit_s: float, clause: str, after: str) -> None:
    reply = await subject.ask(await subject.attempt(), limit_s)
    require(reply.status.ok, clause, f"after {after} a call ended with {reply.status}")


@GROUP.check("CANCEL-1", needs=["stream"])
async def cancelled_streams_hold_nothing(subject: Subject) -> None:
    """Callers who leave early do not use up the provider."""
    limit_s = await _baseline_s(subject)
    for number in range(1, ABANDONED + 1):
        stream = subject.open_stream(await subject.attempt(LONG_QUESTION), limit_s)
        first = await stream.read()
        stream.cancel()
        status = await stream.status()
        late = first is None and status.code == "DEADLINE_EXCEEDED"
        message = f"after {number - 1} cancelled streams the next one did not begin within {limit_s:g} s"
        require(not late, "CANCEL-1", message)
        require(first is not None, "CANCEL-1", f"stream {number}, while others were cancelled: {status}")
    await _works_on(subject, limit_s, "CANCEL-1", f"{ABANDONED} cancelled streams")


@GROUP.check("CANCEL-1", needs=["chat"])
async def cancelled_calls_hold_nothing(subject: Subject) -> None:
    """The same for calls that wait for the whole answer."""
    limit_s = await _baseline_s(subject)
    for _ in range(ABANDONED):
        call = subject.probe.open("chat", pb.ChatRequest(attempt=await subject.attempt()), limit_s)
        await asyncio.sleep(0.005)  # It is on its way, and not yet answered.
        call.cancel()
        await call.status()
    await _works_on(subject, limit_s, "CANCEL-1", f"{ABANDONED} cancelled calls")


@GROUP.check("TIME-1", needs=["chat|stream"])
async def deadlines_end_calls(subject: Subject) -> None:
    """A deadline that cannot be met."""
    limit_s = await _baseline_s(subject)
    for _ in range(5):
        status = (await subject.ask(await subject.attempt(LONG_QUESTION), 0.01)).status
        if not status.ok and status.code != "DEADLINE_EXCEEDED":
            expect(status, "DEADLINE_EXCEEDED", "TIME-1", "a call past its deadline")
    await _works_on(subject, limit_s, "TIME-1", "calls past their deadline")


@GROUP.check("TIME-2", needs=["chat|stream"])
async def timeouts_end_attempts(subject: Subject) -> None:
    """A limit of the attempt that only a very quick provider meets."""
    attempt = await subject.attempt(LONG_QUESTION)
    attempt.timeouts.total_ms = 1
    reply = await subject.ask(attempt)
    if reply.status.ok:
        message = f"`timeouts.total_ms` is 1, the answer took {reply.seconds:.1f} s"
        require(reply.seconds < 1, "TIME-2", message)
    else:
        expect(reply.status, "PROVIDER_TIMEOUT", "TIME-2", "an attempt past its limit")


@GROUP.check("PARALLEL-1", "PARALLEL-2", needs=["chat|stream"])
async def parallel_attempts(subject: Subject) -> None:
    """Ten callers at once, each with a word of its own."""
    words = [f"kelp{new_id('w')[-10:]}" for _ in range(PARALLEL)]
    streamed = subject.offers("stream")
    attempts = [await subject.attempt(f"Repeat this word: {word}") for word in words]
    ask = subject.stream if streamed else subject.chat
    replies = await asyncio.gather(*(ask(attempt) for attempt in attempts))
    limited = sum(reply.status.reason == "PROVIDER_RATE_LIMITED" for reply in replies)
    if limited:
        raise SkippedError(f"the provider's own rate limit refused {limited} of {PARALLEL}")
    for word, attempt, reply in zip(words, attempts, replies, strict=True):
        if not reply.status.ok:
            check_details(reply.status)
        require(reply.status.ok, "PARALLEL-1", f"one of {PARALLEL} ended with {reply.status}")
        if streamed:
            judge(reply, attempt)
        said = said_in(reply, streamed)
        others = [other for other in words if other != word and other in said]
        require(not others, "PARALLEL-2", "an answer holds a word that only another caller had sent")


def said_in(reply: Reply, streamed: bool) -> str:
    """Return the text of an answer, streamed or not."""
    if streamed:
        return " ".join(text for _, text in content_of_stream(reply.messages))
    return text_of(reply.message.message)
