"""The transport inside one process. It does what the wire does, without the wire:

messages are copied both ways or handed over (outlet.py), the handler runs in a task and context of its
own, the deadline and cancellation reach it, streams are bounded, and the caller sees only RpcError.
Identity, validation and logging happen where a request enters the process, not here.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from typing import Any

from google.protobuf.message import Message

from services.common.rpc.call import Call
from services.common.rpc.errors import RpcError, deadline_exceeded, visible_error
from services.common.rpc.method import (
    Method,
    ServiceInterface,
    close_stream,
    copied,
    expected,
    handler_of,
    methods_of,
)
from services.common.rpc.outlet import Accept, offer

# Messages a producer may be ahead of its consumer.
STREAM_BUFFER = 16
CLEAN_UP_S = 2.0
# A deadline nearer than this has a timer of its own. More than two looks apart, so that none is missed.
NEAR_S = 2.5
LOOK_EVERY_S = 1.0

# The event loop keeps only weak references to tasks.
_running: set[asyncio.Task[None]] = set()


class Registry:
    """The services of this process by full name."""

    def __init__(self) -> None:
        self._implementations: dict[str, Any] = {}

    def add(self, interface: type[ServiceInterface], implementation: Any) -> None:
        """Make a service callable from this process."""
        for method in methods_of(interface.DESCRIPTOR):
            handler_of(implementation, method)
        self._implementations[interface.DESCRIPTOR.full_name] = implementation

    def get(self, interface: type[ServiceInterface]) -> Any:
        """Return the implementation, or None."""
        return self._implementations.get(interface.DESCRIPTOR.full_name)


def _spawn(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Run a handler detached from its caller: a caller who leaves does not wait for its clean-up."""
    task = asyncio.get_running_loop().create_task(coroutine, context=Context())
    _running.add(task)
    task.add_done_callback(_running.discard)
    return task


async def cancelled_handlers_ended() -> None:
    """Wait, not for long, until the handlers whose callers have left have cleaned up.

    Call it before what they use is closed.
    """
    leaving = [task for task in _running if task.cancelling()]
    if leaving:
        await asyncio.wait(leaving, timeout=CLEAN_UP_S)


def _settle(future: asyncio.Future[Any], result: Any = None, error: RpcError | None = None) -> None:
    """Answer a future that its reader may have left."""
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


async def _serve(
    handler: Callable[..., Any], method: Method, request: Message, call: Call, answer: asyncio.Future[Message]
) -> None:
    try:
        response = copied(await handler(request, call), method.response, "the response")
    except BaseException as error:  # noqa: BLE001 - every failure of a handler is an answer
        _settle(answer, error=visible_error(error, method.path))
    else:
        _settle(answer, response)


async def call_unary(handler: Callable[..., Any], method: Method, request: Message, call: Call) -> Message:
    """Run a unary handler as the wire would."""
    loop = asyncio.get_running_loop()
    sent = copied(request, method.request, "the request")
    deadline, alarms = call.deadline, None
    if deadline is not None and deadline <= time.monotonic():
        raise deadline_exceeded(method.path)
    answer: asyncio.Future[Message] = loop.create_future()
    task = loop.create_task(_serve(handler, method, sent, call, answer), context=Context())
    if deadline is not None:
        alarms = alarms_of(loop)
        alarms.set(answer, deadline, method.path)
    try:
        return await answer
    finally:
        if alarms is not None:
            alarms.clear(answer)
        if not task.done():
            # Nobody waits for its end from here on.
            _running.add(task)
            task.add_done_callback(_running.discard)
            task.cancel()


class Alarms:
    """The deadlines of the calls that wait on one loop.

    Most calls end long before their deadline, so only the near ones have a timer; the others are looked
    through once a second.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._far: dict[_Waiting, tuple[float, str]] = {}
        self._near: dict[_Waiting, asyncio.TimerHandle] = {}
        self._looking = False

    def set(self, waiting: _Waiting, deadline: float, path: str) -> None:
        """Let a call of `path` fail at `deadline`, on the clock of `time.monotonic()`."""
        remaining = deadline - time.monotonic()
        if remaining < NEAR_S:
            self._near[waiting] = self.loop.call_later(remaining, self._ring, waiting, path)
            return
        self._far[waiting] = deadline, path
        if not self._looking:
            self._looking = True
            self.loop.call_later(LOOK_EVERY_S, self._look)

    def clear(self, waiting: _Waiting) -> None:
        """Forget a call that has ended."""
        if self._far.pop(waiting, None) is None and (timer := self._near.pop(waiting, None)) is not None:
            timer.cancel()

    def _look(self) -> None:
        limit = time.monotonic() + NEAR_S
        due = [(waiting, *entry) for waiting, entry in self._far.items() if entry[0] < limit]
        for waiting, deadline, path in due:
            del self._far[waiting]
            self.set(waiting, deadline, path)
        self._looking = bool(self._far)
        if self._looking:
            self.loop.call_later(LOOK_EVERY_S, self._look)

    def _ring(self, waiting: _Waiting, path: str) -> None:
        self._near.pop(waiting, None)
        error = deadline_exceeded(path)
        if isinstance(waiting, _Pipe):
            waiting.expire(error)
        else:
            _settle(waiting, error=error)


_alarms: Alarms | None = None


def alarms_of(loop: asyncio.AbstractEventLoop) -> Alarms:
    """Return the alarms of a loop. A process has one loop; tests have one after the other."""
    global _alarms
    if _alarms is None or _alarms.loop is not loop:
        _alarms = Alarms(loop)
    return _alarms


class _Pipe:
    """What a handler has produced and its reader has not read.

    Apart from LocalStream, so that a stream its reader dropped is collected and its handler cancelled.
    """

    __slots__ = ("_ended", "_fault", "_method", "_reader", "_writer", "accept", "buffer", "loop", "producer")

    def __init__(self, loop: asyncio.AbstractEventLoop, method: Method) -> None:
        # Kept: asking for the running loop asks the kernel for the process, which counts for each message.
        self.loop = loop
        self.buffer: deque[Message] = deque()
        self.accept: Accept | None = None
        """What the reader takes without being woken."""
        self._method = method
        self._fault: Exception | None = None
        self._ended: RpcError | bool = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self.producer: asyncio.Task[None] | None = None

    def add(self, message: Message) -> bool:
        """Add a message. Tells whether the reader is now so far behind that the writer has to wait."""
        self.buffer.append(message)
        reader = self._reader
        if reader is not None:
            _settle(reader)
        return len(self.buffer) >= STREAM_BUFFER

    def give(self, message: Message) -> bool:
        """Let the reader have a message at once, if it waits for one. Tells whether it took it."""
        reader = self._reader
        if self.accept is None or self.buffer or reader is None or reader.done():
            return False
        if type(message) not in self._method.givable:
            expected(message, self._method.response, "a streamed message")
        try:
            return self.accept(message)
        except Exception as error:  # noqa: BLE001 - it is the reader's, who is told
            self._fault = error
            _settle(reader)
            return True

    async def drained(self) -> None:
        """Wait until there is room again."""
        while len(self.buffer) >= STREAM_BUFFER:
            self._writer = self.loop.create_future()
            await self._writer

    async def get(self) -> Message:
        """Return the next message. Raises StopAsyncIteration or RpcError at the end, the latter once."""
        while not self.buffer:
            if self._fault is not None:
                fault, self._fault = self._fault, None
                raise fault
            if self._ended:
                ended, self._ended = self._ended, True
                raise StopAsyncIteration if ended is True else ended
            self._reader = self.loop.create_future()
            await self._reader
        return self.take()

    def take(self) -> Message:
        """Return the next message, which is there."""
        message = self.buffer.popleft()
        if self._writer is not None:
            _settle(self._writer)
        return message

    def finish(self, ended: RpcError | bool) -> None:
        """End after what is buffered: the handler is done."""
        self._ended = self._ended or ended
        self._wake_reader()

    def cut(self, ended: RpcError | bool) -> None:
        """End now, forget what is buffered and cancel the handler: once, or its clean-up would be cut too."""
        self._ended = ended
        self.buffer.clear()
        self.accept = None
        self._wake_reader()
        if self.producer is not None:
            self.producer.cancel()
            self.producer = None

    def expire(self, error: RpcError) -> None:
        """End with `error`, unless only the end itself is left to read."""
        if self.buffer or not self._ended:
            self.cut(error)

    def in_own_thread(self) -> bool:
        """Tell whether this is the thread of its loop."""
        try:
            return asyncio.get_running_loop() is self.loop
        except RuntimeError:
            return False

    def _wake_reader(self) -> None:
        if self._reader is not None:
            _settle(self._reader)


_Waiting = asyncio.Future[Message] | _Pipe


async def _produce(
    pipe: _Pipe, handler: Callable[..., Any], method: Method, request: Message, call: Call
) -> None:
    ended: RpcError | bool = True
    try:
        stream = handler(request, call)
        # Requests may be large, and streams long: what the handler still needs it holds itself.
        del request
        outlet = getattr(stream, "outlet", None)
        if outlet is not None:
            outlet.accept = pipe.give
        else:
            # What only relays another service's stream need not know of outlets.
            offer(stream, pipe.give)
        try:
            async for message in stream:
                if pipe.add(copied(message, method.response, "a streamed message")):
                    await pipe.drained()
        finally:
            if outlet is not None:
                # It holds the pipe, and the pipe holds this task.
                outlet.accept = None
            await close_stream(stream)
    except BaseException as error:  # noqa: BLE001 - every failure of a handler is an answer
        ended = visible_error(error, method.path)
    pipe.finish(ended)


def _stop(pipe: _Pipe, alarms: Alarms | None) -> None:
    pipe.cut(True)
    if alarms is not None:
        alarms.clear(pipe)


class LocalStream:
    """A server stream. The handler starts with the first read and runs STREAM_BUFFER messages ahead."""

    def __init__(self, handler: Callable[..., Any], method: Method, request: Message, call: Call) -> None:
        self._alarms: Alarms | None = None
        self._started = False
        self._handler = handler
        self._method = method
        self._request: Message | None = copied(request, method.request, "the request")
        self._call = call
        self._pipe = _Pipe(asyncio.get_running_loop(), method)

    def offer_to(self, accept: Accept) -> None:
        """Let `accept` have each message first; what it takes is not read. See services.common.rpc.outlet."""
        self._pipe.accept = accept

    def __aiter__(self) -> LocalStream:
        return self

    async def __anext__(self) -> Any:
        if not self._started:
            self._start()
        pipe = self._pipe
        try:
            while True:
                message = pipe.take() if pipe.buffer else await pipe.get()
                accept = pipe.accept
                if accept is None or not accept(message):
                    return message
        except BaseException:
            self._stop()
            raise

    async def aclose(self) -> None:
        """Stop reading: the handler is cancelled, as when a caller hangs up."""
        self._stop()

    def __del__(self) -> None:
        if not self._started:
            return
        pipe = self._pipe
        if pipe.producer is None or pipe.loop.is_closed():
            return
        if pipe.in_own_thread():
            self._stop()
        else:
            # Garbage is collected wherever it happens to be noticed.
            pipe.loop.call_soon_threadsafe(_stop, pipe, self._alarms)

    def _start(self) -> None:
        self._started = True
        remaining = self._call.remaining_s()
        if remaining == 0:
            self._pipe.finish(deadline_exceeded(self._method.path))
            return
        pipe = self._pipe
        request, self._request = self._request, None
        assert request is not None
        pipe.producer = _spawn(_produce(pipe, self._handler, self._method, request, self._call))
        if self._call.deadline is not None:
            self._alarms = alarms_of(asyncio.get_running_loop())
            self._alarms.set(pipe, self._call.deadline, self._method.path)

    def _stop(self) -> None:
        self._started = True
        _stop(self._pipe, self._alarms)


class LocalClient:
    """Calls a service of the same process through its interface."""

    def __init__(self, interface: type[ServiceInterface], implementation: Any) -> None:
        for method in methods_of(interface.DESCRIPTOR):
            start = LocalStream if method.streams else call_unary
            setattr(self, method.name, partial(start, handler_of(implementation, method), method))
