"""The transport inside one process. It does what the wire does, without the wire:

messages are copied both ways, the handler runs in a task and context of its own, the deadline
and cancellation reach it, streams are bounded, and the caller sees only RpcError. Identity,
validation and logging happen where a request enters the process, not here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextvars import Context
from typing import Any

from google.protobuf.message import Message

from services.common.rpc.call import Call
from services.common.rpc.errors import InternalError, RpcError, to_rpc_error
from services.common.rpc.method import Method, ServiceInterface, handler_of, methods_of

# Messages a producer may be ahead of its consumer.
STREAM_BUFFER = 16

_logger = logging.getLogger(__name__)
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


def _copy(message: Any, make: Callable[[], Message], what: str) -> Message:
    copied = make()
    if type(message) is not type(copied):
        raise TypeError(f"{what} is a {type(message).__name__}, not a {type(copied).__name__}")
    copied.CopyFrom(message)
    return copied


def _visible(error: BaseException, method: Method) -> RpcError:
    visible = to_rpc_error(error)
    if isinstance(visible, InternalError):
        _logger.error("rpc_failed %s", method.path, exc_info=error)
    return visible


def _deadline_exceeded(method: Method) -> RpcError:
    return RpcError("DEADLINE_EXCEEDED", f"{method.path} did not answer before its deadline")


def _spawn(coroutine: Any) -> asyncio.Task[None]:
    task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine, context=Context())
    _running.add(task)
    task.add_done_callback(_running.discard)
    return task


async def call_unary(handler: Callable[..., Any], method: Method, request: Message, call: Call) -> Message:
    """Run a unary handler as the wire would."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Message] = loop.create_future()
    sent = _copy(request, method.request, "the request")

    async def serve() -> None:
        try:
            response = _copy(await handler(sent, call), method.response, "the response")
        except BaseException as error:  # noqa: BLE001 - every failure of a handler is an answer
            if not answer.done():
                answer.set_exception(_visible(error, method))
        else:
            if not answer.done():
                answer.set_result(response)

    def expire() -> None:
        if not answer.done():
            answer.set_exception(_deadline_exceeded(method))

    remaining = call.remaining_s()
    if remaining == 0:
        raise _deadline_exceeded(method)
    timer = None if remaining is None else loop.call_later(remaining, expire)
    task = _spawn(serve())
    try:
        return await answer
    finally:
        if timer is not None:
            timer.cancel()
        if not task.done():
            task.cancel()


class LocalStream:
    """A server stream: the handler runs ahead of its reader by at most STREAM_BUFFER messages."""

    def __init__(self, handler: Callable[..., Any], method: Method, request: Message, call: Call) -> None:
        self._handler = handler
        self._method = method
        self._request = _copy(request, method.request, "the request")
        self._call = call
        self._buffer: deque[Message] = deque()
        self._ended: RpcError | bool = False
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    def __aiter__(self) -> LocalStream:
        return self

    async def __anext__(self) -> Any:
        if self._task is None and not self._ended:
            self._start()
        while not self._buffer:
            if isinstance(self._ended, RpcError):
                error, self._ended = self._ended, True
                raise error
            if self._ended:
                raise StopAsyncIteration
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            except asyncio.CancelledError:
                self._stop(True)
                raise
            finally:
                self._reader = None
        message = self._buffer.popleft()
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)
        return message

    async def aclose(self) -> None:
        """Stop reading: the handler is cancelled, as when a caller hangs up."""
        self._stop(True)

    def __del__(self) -> None:
        if self._task is not None and not self._task.done() and not self._task.get_loop().is_closed():
            self._task.cancel()

    def _start(self) -> None:
        remaining = self._call.remaining_s()
        if remaining == 0:
            self._ended = _deadline_exceeded(self._method)
            return
        self._task = _spawn(self._produce())
        if remaining is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(remaining, lambda: self._stop(_deadline_exceeded(self._method)))

    async def _produce(self) -> None:
        ended: RpcError | bool = True
        stream: AsyncIterator[Any] = self._handler(self._request, self._call)
        try:
            async for message in stream:
                copied = _copy(message, self._method.response, "a streamed message")
                if len(self._buffer) >= STREAM_BUFFER:
                    self._writer = asyncio.get_running_loop().create_future()
                    await self._writer
                self._buffer.append(copied)
                self._wake()
        except BaseException as error:  # noqa: BLE001 - every failure of a handler is an answer
            ended = _visible(error, self._method)
        finally:
            await _close(stream)
            self._finish(ended)

    def _stop(self, ended: RpcError | bool) -> None:
        """End the stream from the reader's side."""
        if not self._ended:
            self._buffer.clear()
        self._finish(ended)
        if self._task is not None and not self._task.done():
            self._task.cancel()

    def _finish(self, ended: RpcError | bool) -> None:
        if not self._ended:
            self._ended = ended
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


async def _close(stream: Any) -> None:
    close = getattr(stream, "aclose", None)
    if close is not None:
        await close()


def _unary_stub(handler: Callable[..., Any], method: Method) -> Callable[[Any, Call], Any]:
    def stub(request: Any, call: Call) -> Any:
        return call_unary(handler, method, request, call)

    return stub


def _stream_stub(handler: Callable[..., Any], method: Method) -> Callable[[Any, Call], Any]:
    def stub(request: Any, call: Call) -> Any:
        return LocalStream(handler, method, request, call)

    return stub


class LocalClient:
    """Calls a service of the same process through its interface."""

    def __init__(self, interface: type[ServiceInterface], implementation: Any) -> None:
        for method in methods_of(interface.DESCRIPTOR):
            make = _stream_stub if method.streams else _unary_stub
            setattr(self, method.name, make(handler_of(implementation, method), method))
