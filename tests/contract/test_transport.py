"""The transport's contract. Every case runs in process and over gRPC and cannot tell them apart."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any

import pytest

from services.common.rpc import Call, Identity, RpcError
from services.common.rpc.errors import Violation
from services.common.rpc.outlet import Outlet, OutletStream, offer
from tests.support.echo import (
    CountRequest,
    CountResponse,
    SayRequest,
    SayResponse,
    Share,
    WhisperRequest,
    WhisperResponse,
)

Connect = Callable[..., Awaitable[Any]]
CALL = Call("req_contract")
SAY = "/omnihubtest.v1.EchoService/Say"
COUNT = "/omnihubtest.v1.EchoService/Count"
MASKED = "internal error; the request id finds it in the log"
WAIT_S = 30

note: ContextVar[str] = ContextVar("note", default="nothing")


def facts(error: RpcError) -> tuple[Any, ...]:
    """All that a caller can read from an error."""
    return error.reason, error.message, error.metadata, error.violations, error.retry_after_s


def plain(reason: str, message: str) -> tuple[Any, ...]:
    return reason, message, {}, (), None


class NoSuchWalletError(Exception):
    """A domain error as services write them."""

    reason = "NOT_FOUND"

    def __init__(self) -> None:
        super().__init__("no wallet `w1`; create it first")
        self.metadata = {"wallet": "w1", "seq": 7}
        self.violations = [Violation("wallet", "must exist")]
        self.retry_after_s = 1.25


class Witness:
    """What happened to a handler, awaitable from the test."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.cleaned = asyncio.Event()
        self.release = asyncio.Event()
        self.release.set()

    async def hang(self) -> None:
        """Wait for ever; on cancellation clean up, which lasts until `release`."""
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            await self.release.wait()
            self.cleaned.set()

    async def say(self, _: Any, __: Any) -> Any:
        await self.hang()

    async def count(self, request: Any, _: Any) -> AsyncIterator[Any]:
        for number in range(request.until):
            yield CountResponse(number=number)
        await self.hang()


async def soon(event: asyncio.Event) -> None:
    async with asyncio.timeout(WAIT_S):
        await event.wait()


async def numbers(stream: Any) -> list[int]:
    return [message.number async for message in stream]


# --- answers -----------------------------------------------------------------------------------


async def test_unary(connect: Connect) -> None:
    client = await connect()
    reply = await client.say(SayRequest(text="hello", tags=["a", "b"]), CALL)
    assert reply == SayResponse(text="hello", tags=["a", "b"])


async def test_stream(connect: Connect) -> None:
    client = await connect()
    assert await numbers(client.count(CountRequest(until=100), CALL)) == list(range(100))


async def test_empty_stream(connect: Connect) -> None:
    client = await connect()
    assert await numbers(client.count(CountRequest(), CALL)) == []


async def test_a_stream_stays_ended(connect: Connect) -> None:
    client = await connect()
    stream = client.count(CountRequest(until=1), CALL)
    assert await numbers(stream) == [0]
    assert await numbers(stream) == []
    await stream.aclose()


async def test_a_stream_starts_with_its_first_read(connect: Connect) -> None:
    witness = Witness()
    client = await connect(count=witness.count, say=witness.say)
    unread = client.count(CountRequest(), CALL)
    await unread.aclose()
    assert await numbers(unread) == []
    assert not witness.started.is_set()


async def test_a_handler_may_return_any_iterator(connect: Connect) -> None:
    class Once:
        def __init__(self) -> None:
            self.left = [CountResponse(number=5)]

        def __aiter__(self) -> Once:
            return self

        async def __anext__(self) -> Any:
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop()

    client = await connect(count=lambda *_: Once())
    assert await numbers(client.count(CountRequest(), CALL)) == [5]


async def test_a_handler_may_relay_a_stream(connect: Connect) -> None:
    origin = await connect()
    relay = await connect(count=origin.count)
    assert await numbers(relay.count(CountRequest(until=40), CALL)) == list(range(40))


async def test_concurrent_calls(connect: Connect) -> None:
    client = await connect()

    async def one(index: int) -> tuple[str, list[int]]:
        reply = await client.say(SayRequest(text=str(index)), CALL)
        return reply.text, await numbers(client.count(CountRequest(until=index), CALL))

    answers = await asyncio.gather(*(one(index) for index in range(50)))
    assert answers == [(str(index), list(range(index))) for index in range(50)]


async def test_large_messages(connect: Connect) -> None:
    async def count(request: Any, _: Any) -> AsyncIterator[Any]:
        yield CountResponse(payload=payload)

    payload = bytes(range(256)) * 20_000
    client = await connect(count=count)
    reply = await client.say(SayRequest(payload=payload), CALL)
    assert reply.payload == payload
    streamed = [message.payload async for message in client.count(CountRequest(), CALL)]
    assert streamed == [payload]


# --- isolation ---------------------------------------------------------------------------------


async def test_the_callee_has_its_own_request(connect: Connect) -> None:
    async def say(request: Any, _: Any) -> Any:
        request.tags.append("callee")
        return SayResponse(tags=request.tags)

    async def count(request: Any, _: Any) -> AsyncIterator[Any]:
        request.tags.append("callee")
        yield CountResponse(number=len(request.tags))

    client = await connect(say=say, count=count)
    request = SayRequest(tags=["caller"])
    assert (await client.say(request, CALL)).tags == ["caller", "callee"]
    assert request.tags == ["caller"]
    streamed = CountRequest(tags=["caller"])
    assert await numbers(client.count(streamed, CALL)) == [2]
    assert streamed.tags == ["caller"]


async def test_what_the_caller_changes_after_sending_stays_unseen(connect: Connect) -> None:
    started, changed = asyncio.Event(), asyncio.Event()

    async def say(request: Any, _: Any) -> Any:
        started.set()
        await changed.wait()
        return SayResponse(text=request.text)

    client = await connect(say=say)
    request = SayRequest(text="before")
    task = asyncio.create_task(client.say(request, CALL))
    await soon(started)
    request.text = "after"
    changed.set()
    assert (await task).text == "before"
    streamed = CountRequest(until=2)
    stream = client.count(streamed, CALL)
    streamed.until = 5
    assert await numbers(stream) == [0, 1]


async def test_the_caller_has_its_own_replies(connect: Connect) -> None:
    kept = SayResponse(tags=["reply"])
    reused = CountResponse()

    async def say(_: Any, __: Any) -> Any:
        return kept

    async def count(request: Any, _: Any) -> AsyncIterator[Any]:
        for number in range(request.until):
            reused.number = number
            yield reused

    client = await connect(say=say, count=count)
    first = await client.say(SayRequest(), CALL)
    kept.tags.append("changed by the callee")
    assert first.tags == ["reply"]
    second = await client.say(SayRequest(), CALL)
    second.tags.append("changed by the caller")
    assert kept.tags == ["reply", "changed by the callee"]
    assert await numbers(client.count(CountRequest(until=10), CALL)) == list(range(10))


async def test_context_does_not_leak(connect: Connect) -> None:
    seen = []

    async def say(_: Any, __: Any) -> Any:
        seen.append(note.get())
        note.set("callee")
        return SayResponse()

    async def count(_: Any, __: Any) -> AsyncIterator[Any]:
        seen.append(note.get())
        note.set("callee")
        yield CountResponse()

    client = await connect(say=say, count=count)
    token = note.set("caller")
    for _ in range(2):
        await client.say(SayRequest(), CALL)
        assert note.get() == "caller"
        await numbers(client.count(CountRequest(), CALL))
        assert note.get() == "caller"
    note.reset(token)
    assert seen == ["nothing"] * 4


async def test_the_callee_runs_in_its_own_task(connect: Connect) -> None:
    tasks = []

    async def say(_: Any, __: Any) -> Any:
        tasks.append(asyncio.current_task())
        return SayResponse()

    async def count(_: Any, __: Any) -> AsyncIterator[Any]:
        tasks.append(asyncio.current_task())
        yield CountResponse()
        tasks.append(asyncio.current_task())

    client = await connect(say=say, count=count)
    await client.say(SayRequest(), CALL)
    await numbers(client.count(CountRequest(), CALL))
    assert asyncio.current_task() not in tasks
    assert tasks[0] is not tasks[1]
    assert tasks[1] is tasks[2]


# --- what travels with a call ------------------------------------------------------------------


class FakeGate:
    """Knows one identity token."""

    identity = Identity(
        organisation_id="org_1", key_id="key_1", scopes=frozenset({"chat"}), token="signed-token"
    )

    async def authenticate(self, credential: str) -> Identity:
        raise RpcError("INVALID_CREDENTIAL", f"unknown credential {credential}")

    async def verify(self, token: str) -> Identity:
        if token != self.identity.token:
            raise RpcError("INVALID_CREDENTIAL", "the identity token is not valid")
        return self.identity


async def test_the_call_travels(connect: Connect) -> None:
    seen = []

    async def whisper(request: Any, call: Call) -> Any:
        seen.append(call)
        return WhisperResponse(text=request.text)

    client = await connect(gate=FakeGate(), whisper=whisper)
    call = Call(
        "req_travels",
        FakeGate.identity,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        idempotency_key="order 66",
        client_address="2001:db8::7",
    )
    await client.whisper(WhisperRequest(text="psst"), call)
    assert seen == [call]


async def test_a_call_that_fits_no_header_is_refused(connect: Connect) -> None:
    await connect()
    with pytest.raises(RpcError) as raised:
        Call("req_1", idempotency_key="schlüssel")
    assert raised.value.reason == "INVALID_ARGUMENT"
    assert [violation.field for violation in raised.value.violations] == ["idempotency_key"]


async def test_the_callee_sees_the_deadline(connect: Connect) -> None:
    seen: list[float | None] = []

    async def say(_: Any, call: Call) -> Any:
        seen.append(call.remaining_s())
        return SayResponse()

    async def count(_: Any, call: Call) -> AsyncIterator[Any]:
        seen.append(call.remaining_s())
        yield CountResponse()

    client = await connect(say=say, count=count)
    for call in (CALL.within(30), CALL):
        await client.say(SayRequest(), call)
        await numbers(client.count(CountRequest(), call))
    assert seen[2:] == [None, None]
    # gRPC rounds what it sends up.
    assert all(remaining is not None and 20 < remaining < 31 for remaining in seen[:2])


# --- deadlines ---------------------------------------------------------------------------------

LATE_SAY = plain("DEADLINE_EXCEEDED", f"{SAY} did not answer before its deadline")
LATE_COUNT = plain("DEADLINE_EXCEEDED", f"{COUNT} did not answer before its deadline")


async def test_a_deadline_that_has_passed(connect: Connect) -> None:
    witness = Witness()
    client = await connect(say=witness.say, count=witness.count)
    with pytest.raises(RpcError) as raised:
        await client.say(SayRequest(), CALL.within(0))
    assert facts(raised.value) == LATE_SAY
    stream = client.count(CountRequest(until=3), CALL.within(0))
    with pytest.raises(RpcError) as raised:
        await anext(stream)
    assert facts(raised.value) == LATE_COUNT
    assert await numbers(stream) == []
    assert not witness.started.is_set()


async def test_a_deadline_ends_a_unary_call(connect: Connect) -> None:
    witness = Witness()
    client = await connect(say=witness.say)
    started = time.monotonic()
    with pytest.raises(RpcError) as raised:
        await client.say(SayRequest(), CALL.within(0.8))
    assert facts(raised.value) == LATE_SAY
    assert 0.75 < time.monotonic() - started < 30
    await soon(witness.cancelled)
    await soon(witness.cleaned)


async def test_a_deadline_ends_a_stream_after_its_messages(connect: Connect) -> None:
    witness = Witness()
    client = await connect(count=witness.count)
    stream = client.count(CountRequest(until=3), CALL.within(1))
    read = [(await anext(stream)).number for _ in range(3)]
    assert read == [0, 1, 2]
    with pytest.raises(RpcError) as raised:
        await anext(stream)
    assert facts(raised.value) == LATE_COUNT
    assert await numbers(stream) == []
    await soon(witness.cancelled)
    await soon(witness.cleaned)


async def test_a_deadline_frees_the_caller_while_the_callee_still_cleans_up(connect: Connect) -> None:
    witness = Witness()
    witness.release.clear()
    client = await connect(say=witness.say)
    with pytest.raises(RpcError) as raised:
        await client.say(SayRequest(), CALL.within(0.8))
    assert facts(raised.value) == LATE_SAY
    await soon(witness.cancelled)
    assert not witness.cleaned.is_set()
    witness.release.set()
    await soon(witness.cleaned)


async def test_the_deadline_of_a_call_runs_while_nobody_reads(connect: Connect) -> None:
    stopped = asyncio.Event()

    async def count(_: Any, __: Any) -> AsyncIterator[Any]:
        try:
            while True:
                yield CountResponse(payload=bytes(100_000))
        finally:
            stopped.set()

    client = await connect(count=count)
    stream = client.count(CountRequest(), CALL.within(1))
    await anext(stream)
    await soon(stopped)
    with pytest.raises(RpcError) as raised:
        await numbers(stream)
    assert facts(raised.value) == LATE_COUNT


async def test_what_was_not_read_before_the_deadline_is_lost(connect: Connect) -> None:
    client = await connect()
    call = CALL.within(1)
    stream = client.count(CountRequest(until=5), call)
    await anext(stream)
    await asyncio.sleep((call.remaining_s() or 0) + 0.1)
    with pytest.raises(RpcError) as raised:
        await numbers(stream)
    assert facts(raised.value) == LATE_COUNT


async def test_deadlines_under_load(connect: Connect) -> None:
    witnesses = [Witness() for _ in range(50)]

    async def say(request: Any, _: Any) -> Any:
        await witnesses[int(request.text)].hang()

    client = await connect(say=say)
    calls = (client.say(SayRequest(text=str(index)), CALL.within(1.0)) for index in range(50))
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert [facts(error) for error in errors] == [LATE_SAY] * 50
    # A call that is late before its handler begins need not begin it.
    begun = [witness for witness in witnesses if witness.started.is_set()]
    assert begun
    for witness in begun:
        await soon(witness.cleaned)


# --- cancellation ------------------------------------------------------------------------------


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(WAIT_S):
            await task


async def test_cancelling_a_unary_call(connect: Connect) -> None:
    witness = Witness()
    witness.release.clear()
    client = await connect(say=witness.say)
    task = asyncio.create_task(client.say(SayRequest(), CALL))
    await soon(witness.started)
    await cancelled(task)
    await soon(witness.cancelled)
    assert not witness.cleaned.is_set()
    witness.release.set()
    await soon(witness.cleaned)


async def test_cancelling_the_reader_of_a_stream(connect: Connect) -> None:
    witness = Witness()
    witness.release.clear()
    client = await connect(count=witness.count)
    stream = client.count(CountRequest(until=2), CALL)
    task = asyncio.create_task(numbers(stream))
    await soon(witness.started)
    await cancelled(task)
    assert await numbers(stream) == []
    await soon(witness.cancelled)
    assert not witness.cleaned.is_set()
    witness.release.set()
    await soon(witness.cleaned)


async def test_closing_a_stream(connect: Connect) -> None:
    witness = Witness()
    witness.release.clear()
    client = await connect(count=witness.count)
    async with aclosing(client.count(CountRequest(until=2), CALL)) as stream:
        assert (await anext(stream)).number == 0
        await soon(witness.started)
    assert await numbers(stream) == []
    await soon(witness.cancelled)
    assert not witness.cleaned.is_set()
    witness.release.set()
    await soon(witness.cleaned)


async def test_closing_a_stream_that_another_task_reads(connect: Connect) -> None:
    witness = Witness()
    client = await connect(count=witness.count)
    stream = client.count(CountRequest(), CALL)
    task = asyncio.create_task(numbers(stream))
    await soon(witness.started)
    await stream.aclose()
    assert await task == []
    await soon(witness.cleaned)


async def test_closing_a_stream_whose_producer_waits_for_its_reader(connect: Connect) -> None:
    cleaned = asyncio.Event()
    tasks = []

    async def count(_: Any, __: Any) -> AsyncIterator[Any]:
        tasks.append(asyncio.current_task())
        try:
            while True:
                yield CountResponse(payload=bytes(100_000))
        finally:
            tasks.append(asyncio.current_task())
            cleaned.set()

    client = await connect(count=count)
    stream = client.count(CountRequest(), CALL)
    await anext(stream)
    await stream.aclose()
    await soon(cleaned)
    assert tasks[0] is tasks[1]


async def test_a_stream_that_is_dropped(connect: Connect) -> None:
    witness = Witness()
    client = await connect(count=witness.count)
    async for message in client.count(CountRequest(until=2), CALL):
        assert message.number == 0
        # Who is stopped before has nothing to clean up.
        await soon(witness.started)
        break
    gc.collect()
    await soon(witness.cleaned)


async def test_a_timeout_around_a_read_ends_the_stream(connect: Connect) -> None:
    witness = Witness()
    client = await connect(count=witness.count)
    stream = client.count(CountRequest(until=1), CALL)
    await anext(stream)
    await soon(witness.started)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await anext(stream)
    assert await numbers(stream) == []
    await soon(witness.cleaned)


async def test_a_callee_that_cancels_itself(connect: Connect) -> None:
    async def say(_: Any, __: Any) -> Any:
        raise asyncio.CancelledError

    async def count(_: Any, __: Any) -> AsyncIterator[Any]:
        yield CountResponse(number=1)
        raise asyncio.CancelledError

    client = await connect(say=say, count=count)
    with pytest.raises(RpcError) as raised:
        await client.say(SayRequest(), CALL)
    assert facts(raised.value) == plain("CANCELLED", "the call was cancelled")
    stream = client.count(CountRequest(), CALL)
    assert (await anext(stream)).number == 1
    with pytest.raises(RpcError) as raised:
        await anext(stream)
    assert facts(raised.value) == plain("CANCELLED", "the call was cancelled")


async def test_a_callee_that_answers_although_it_was_cancelled(connect: Connect) -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def say(_: Any, __: Any) -> Any:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.set()
        return SayResponse(text="too late")

    client = await connect(say=say)
    task = asyncio.create_task(client.say(SayRequest(), CALL))
    await soon(started)
    await cancelled(task)
    await soon(ended)


async def test_cancellation_goes_through_a_chain(connect: Connect) -> None:
    witness = Witness()
    inner = await connect(say=witness.say, count=witness.count)
    outer = await connect(say=inner.say, count=inner.count)
    task = asyncio.create_task(outer.say(SayRequest(), CALL))
    await soon(witness.started)
    await cancelled(task)
    await soon(witness.cleaned)
    witness.started.clear()
    witness.cleaned.clear()
    async with aclosing(outer.count(CountRequest(until=1), CALL)) as stream:
        await anext(stream)
        await soon(witness.started)
    await soon(witness.cleaned)


# --- errors ------------------------------------------------------------------------------------


async def test_a_domain_error(connect: Connect) -> None:
    async def say(_: Any, __: Any) -> Any:
        raise NoSuchWalletError

    client = await connect(say=say)
    with pytest.raises(RpcError) as raised:
        await client.say(SayRequest(), CALL)
    assert facts(raised.value) == (
        "NOT_FOUND",
        "no wallet `w1`; create it first",
        {"wallet": "w1", "seq": "7"},
        (Violation("wallet", "must exist"),),
        1.25,
    )


async def test_an_error_of_a_peer_goes_through_unchanged(connect: Connect) -> None:
    async def say(_: Any, __: Any) -> Any:
        raise NoSuchWalletError

    inner = await connect(say=say)
    outer = await connect(say=inner.say)
    errors = []
    for client in (inner, outer):
        with pytest.raises(RpcError) as raised:
            await client.say(SayRequest(), CALL)
        errors.append(facts(raised.value))
    assert errors[0] == errors[1]


async def test_an_error_after_messages(connect: Connect) -> None:
    async def count(request: Any, _: Any) -> AsyncIterator[Any]:
        for number in range(request.until):
            yield CountResponse(number=number)
        raise NoSuchWalletError

    client = await connect(count=count)
    for until in (0, 3, 40):
        stream = client.count(CountRequest(until=until), CALL)
        read = [(await anext(stream)).number for _ in range(until)]
        assert read == list(range(until))
        with pytest.raises(RpcError) as raised:
            await anext(stream)
        assert raised.value.reason == "NOT_FOUND"
        assert raised.value.retry_after_s == 1.25
        assert await numbers(stream) == []


async def test_a_handler_that_fails_before_it_streams(connect: Connect) -> None:
    def count(_: Any, __: Any) -> Any:
        raise NoSuchWalletError

    client = await connect(count=count)
    with pytest.raises(RpcError) as raised:
        await numbers(client.count(CountRequest(), CALL))
    assert raised.value.reason == "NOT_FOUND"


async def test_an_unknown_exception_is_masked(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    async def say(_: Any, __: Any) -> Any:
        raise ValueError("password=hunter2")

    async def count(_: Any, __: Any) -> AsyncIterator[Any]:
        yield CountResponse()
        raise KeyError("password=hunter2")

    client = await connect(say=say, count=count)
    with pytest.raises(RpcError) as raised:
        await client.say(SayRequest(), CALL)
    assert facts(raised.value) == plain("INTERNAL", MASKED)
    assert raised.value.__cause__ is None
    with pytest.raises(RpcError) as raised:
        await numbers(client.count(CountRequest(), CALL))
    assert facts(raised.value) == plain("INTERNAL", MASKED)
    logged = [(record.getMessage(), record.exc_info[0]) for record in caplog.records if record.exc_info]
    assert logged == [(f"rpc_failed {SAY}", ValueError), (f"rpc_failed {COUNT}", KeyError)]


async def test_an_exception_in_the_clean_up_is_logged(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    class Listener(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            logged.set()

    logged = asyncio.Event()

    async def count(_: Any, __: Any) -> AsyncIterator[Any]:
        try:
            while True:
                yield CountResponse(payload=bytes(100_000))
        finally:
            raise ValueError("broken clean-up")

    client = await connect(count=count)
    listener = Listener()
    logging.getLogger().addHandler(listener)
    try:
        async with aclosing(client.count(CountRequest(), CALL)) as stream:
            await anext(stream)
        await soon(logged)
    finally:
        logging.getLogger().removeHandler(listener)
    assert [record.getMessage() for record in caplog.records] == [f"rpc_failed {COUNT}"]


async def test_long_errors_arrive(connect: Connect) -> None:
    class LongError(Exception):
        reason = "INVALID_ARGUMENT"
        metadata = {"field": "ü" * 500}
        violations = [Violation(f"field_{index}", "must be ü") for index in range(100)]

    async def say(_: Any, __: Any) -> Any:
        raise LongError("ü" * 5000)

    client = await connect(say=say)
    with pytest.raises(RpcError) as raised:
        await client.say(SayRequest(), CALL)
    assert facts(raised.value) == (
        "INVALID_ARGUMENT",
        "ü" * 2000,
        {"field": "ü" * 500},
        tuple(Violation(f"field_{index}", "must be ü") for index in range(20)),
        None,
    )


@pytest.mark.parametrize("wrong", [None, CountResponse(), "text"])
async def test_a_reply_of_another_type_is_an_error(connect: Connect, wrong: Any) -> None:
    async def say(_: Any, __: Any) -> Any:
        return wrong

    async def count(_: Any, __: Any) -> AsyncIterator[Any]:
        yield CountResponse(number=1)
        yield SayResponse() if isinstance(wrong, CountResponse) else wrong

    client = await connect(say=say, count=count)
    with pytest.raises(RpcError) as raised:
        await client.say(SayRequest(), CALL)
    assert facts(raised.value) == plain("INTERNAL", MASKED)
    stream = client.count(CountRequest(), CALL)
    assert (await anext(stream)).number == 1
    with pytest.raises(RpcError) as raised:
        await anext(stream)
    assert facts(raised.value) == plain("INTERNAL", MASKED)


async def test_a_request_of_another_type_is_an_error(connect: Connect) -> None:
    client = await connect()
    with pytest.raises(TypeError, match="the request is a CountRequest, not a SayRequest"):
        await client.say(CountRequest(), CALL)
    with pytest.raises(TypeError, match="the request is a SayRequest, not a CountRequest"):
        await anext(client.count(SayRequest(), CALL))


# --- back-pressure -----------------------------------------------------------------------------


async def test_a_fast_producer_waits_for_its_reader(connect: Connect) -> None:
    produced = 0
    finished = asyncio.Event()

    async def count(request: Any, _: Any) -> AsyncIterator[Any]:
        nonlocal produced
        for number in range(request.until):
            produced += 1
            yield CountResponse(number=number, payload=bytes(100_000))
        finished.set()

    client = await connect(count=count)
    stream = client.count(CountRequest(until=1000), CALL)
    read = [(await anext(stream)).number]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await finished.wait()
    # gRPC's window grows with what it measures, to 16 MiB; the rest of these 100 MB must wait.
    assert produced <= 400
    read += await numbers(stream)
    assert read == list(range(1000))
    assert produced == 1000


async def test_a_slow_producer_is_read_as_it_produces(connect: Connect) -> None:
    turn = asyncio.Queue[int]()

    async def count(_: Any, __: Any) -> AsyncIterator[Any]:
        while (number := await turn.get()) >= 0:
            yield CountResponse(number=number)

    client = await connect(count=count)
    stream = client.count(CountRequest(), CALL)
    for number in range(20):
        turn.put_nowait(number)
        assert (await anext(stream)).number == number
    turn.put_nowait(-1)
    assert await numbers(stream) == []


# --- messages that are taken at once -----------------------------------------------------------


class Giver:
    """A handler that gives numbers to its outlet, each when told to, and yields what was not taken."""

    def __init__(self) -> None:
        self.turn = asyncio.Queue[int]()
        self.given: list[bool] = []

    def count(self, _: Any, __: Any) -> Any:
        outlet = Outlet()
        return OutletStream(self._numbers(outlet), outlet)

    async def _numbers(self, outlet: Outlet) -> AsyncIterator[Any]:  # type: ignore[misc]
        while (number := await self.turn.get()) >= 0:
            message = CountResponse(number=number)
            self.given.append(outlet.give(message))
            if not self.given[-1]:
                yield message


class Taker:
    """Takes even numbers, and raises at a number."""

    def __init__(self, fault: int = -1) -> None:
        self.taken: list[int] = []
        self.begun = asyncio.Event()
        self.fault = fault

    def accept(self, message: Any) -> bool:
        if message.number == self.fault:
            raise KeyError("accept is broken")
        if message.number % 2:
            return False
        self.taken.append(message.number)
        self.begun.set()
        return True


async def test_messages_are_taken_or_read_each_once_and_in_their_order(connect: Connect) -> None:
    giver, taker = Giver(), Taker()
    client = await connect(count=giver.count)
    stream = client.count(CountRequest(), CALL)
    order: list[int] = []

    def accept(message: Any) -> bool:
        taken = taker.accept(message)
        order.extend([message.number] if taken else [])
        return taken

    offer(stream, accept)
    for number in (0, 2, 1, 4, 3, 6, 5, -1):
        giver.turn.put_nowait(number)
    read = []
    async for message in stream:
        order.append(message.number)
        read.append(message.number)
    assert (taker.taken, read) == ([0, 2, 4, 6], [1, 3, 5])
    assert order == [0, 2, 1, 4, 3, 6, 5]


async def test_what_a_message_holds_is_given_without_it_and_read_in_it(connect: Connect) -> None:
    turn, order = asyncio.Queue[int](), list[int]()

    async def shares(outlet: Outlet) -> AsyncIterator[Any]:  # type: ignore[misc]
        while (number := await turn.get()) >= 0:
            share = Share(number=number)
            if not outlet.give(share):
                yield CountResponse(share=share)

    def count(_: Any, __: Any) -> Any:
        outlet = Outlet()
        return OutletStream(shares(outlet), outlet)  # type: ignore[arg-type]

    def accept(message: Any) -> bool:
        share = message if isinstance(message, Share) else message.share
        order.extend([] if share.number % 2 else [share.number])
        return not share.number % 2

    client = await connect(count=count)
    stream = client.count(CountRequest(), CALL)
    offer(stream, accept)
    for number in (0, 2, 1, 4, 3, 6, -1):
        turn.put_nowait(number)
    async for message in stream:
        assert isinstance(message, CountResponse)
        order.append(message.share.number)
    assert order == [0, 2, 1, 4, 3, 6]


async def test_a_reader_that_takes_nothing_reads_everything(connect: Connect) -> None:
    giver = Giver()
    client = await connect(count=giver.count)
    for number in (0, 1, 2, -1):
        giver.turn.put_nowait(number)
    assert await numbers(client.count(CountRequest(), CALL)) == [0, 1, 2]
    assert giver.given == [False] * 3


async def test_offers_to_a_handler_without_an_outlet(connect: Connect) -> None:
    taker = Taker()
    client = await connect()
    stream = client.count(CountRequest(until=40), CALL)
    offer(stream, taker.accept)
    assert await numbers(stream) == list(range(1, 40, 2))
    assert taker.taken == list(range(0, 40, 2))


async def test_a_fault_of_the_taker_is_its_readers(connect: Connect) -> None:
    giver = Giver()
    client = await connect(count=giver.count)
    stream = client.count(CountRequest(), CALL)
    offer(stream, Taker(fault=2).accept)
    reading = asyncio.create_task(numbers(stream))
    for number in (0, 2, 4):
        giver.turn.put_nowait(number)
    with pytest.raises(KeyError, match="accept is broken"):
        await reading
    assert await numbers(stream) == []


async def test_nothing_is_given_to_a_reader_who_has_left(connect: Connect) -> None:
    giver, taker = Giver(), Taker()
    client = await connect(count=giver.count)
    stream = client.count(CountRequest(), CALL)
    offer(stream, taker.accept)
    reading = asyncio.create_task(numbers(stream))
    giver.turn.put_nowait(0)
    await soon(taker.begun)
    giver.turn.put_nowait(2)
    await cancelled(reading)
    assert await numbers(stream) == []
    assert taker.taken == [0]


async def test_a_message_of_another_type_is_not_given(connect: Connect) -> None:
    async def events(outlet: Outlet) -> AsyncIterator[Any]:  # type: ignore[misc]
        yield CountResponse(number=1)
        wrong = SayResponse()
        if not outlet.give(wrong):
            yield wrong

    def count(_: Any, __: Any) -> Any:
        outlet = Outlet()
        return OutletStream(events(outlet), outlet)  # type: ignore[arg-type]

    client = await connect(count=count)
    stream = client.count(CountRequest(), CALL)
    offer(stream, lambda message: isinstance(message, SayResponse))
    with pytest.raises(RpcError) as raised:
        assert await numbers(stream) == [1]
    assert facts(raised.value) == plain("INTERNAL", MASKED)
