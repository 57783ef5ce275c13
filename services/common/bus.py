"""RabbitMQ: messages of the outbox to workers in other processes, at least once.

A publish counts once the quorum has confirmed it; a message is acknowledged once its handler has returned.
Messages carry ids, never state. The topology is declared, never changed: other arguments, another name.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import aio_pika
from aio_pika.abc import (
    AbstractChannel,
    AbstractConnection,
    AbstractExchange,
    AbstractIncomingMessage,
    HeadersType,
)
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError, DeliveryError
from sqlalchemy.exc import SQLAlchemyError

from services.common.outbox import SECOND, Message, Outbox

CONFIRM_LIMIT_S = 10.0
IN_FLIGHT = 50
POLL_S = 0.5
RETRY_S = 1.0
STOP_GRACE_S = 5.0
LOOK_S = 10.0
# A wire on which nothing comes any more is given up after about three of these.
HEARTBEAT_S = 10
DELIVERY_LIMIT = 5
LENGTH_LIMIT = 50_000

# What becomes of most calls when the broker goes away.
BROKEN = (AMQPError, ChannelInvalidStateError, ConnectionError, OSError, TimeoutError)

Handler = Callable[[str], Awaitable[None]]
Buried = Callable[[str, str, str], Awaitable[None]]
"""Takes in a dead letter: its queue, what it was about, and why it died."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Topology:
    """The names of one area, such as `job`: a direct exchange, its queues, and where the dead go."""

    area: str
    queues: Sequence[str]
    """The most urgent first."""
    version: int = 1
    length_limit: int = LENGTH_LIMIT

    @property
    def exchange(self) -> str:
        """Return the name of the exchange that messages are published to."""
        return f"{self.area}.dispatch"

    @property
    def dead_exchange(self) -> str:
        """Return the name of the exchange that dead letters go to."""
        return f"{self.area}.dlx"

    @property
    def dead_queue(self) -> str:
        """Return the name of the queue of dead letters."""
        return f"{self.area}.dead.v{self.version}"

    def queue(self, name: str) -> str:
        """Return the broker's name of a queue."""
        return f"{name}.v{self.version}"

    async def declare(self, channel: AbstractChannel) -> AbstractExchange:
        """Make sure that all of it exists; return the exchange to publish to."""
        dead = await channel.declare_exchange(self.dead_exchange, aio_pika.ExchangeType.FANOUT, durable=True)
        graves = await channel.declare_queue(
            self.dead_queue, durable=True, arguments={"x-queue-type": "quorum"}
        )
        await graves.bind(dead)
        exchange = await channel.declare_exchange(self.exchange, aio_pika.ExchangeType.DIRECT, durable=True)
        arguments: HeadersType = {
            "x-queue-type": "quorum",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-max-length": self.length_limit,
            # A full queue refuses: the message stays in the outbox, and producers feel it.
            "x-overflow": "reject-publish",
            "x-dead-letter-exchange": self.dead_exchange,
            "x-dead-letter-strategy": "at-least-once",
        }
        for name in self.queues:
            queue = await channel.declare_queue(self.queue(name), durable=True, arguments=arguments)
            await queue.bind(exchange, routing_key=name)
        return exchange


class Relay:
    """Publishes the outbox. Any number of relays may run: each takes other rows."""

    def __init__(
        self,
        url: str,
        topology: Topology,
        outbox: Outbox,
        clock: Callable[[], datetime],
        confirmed: Callable[[], None] = lambda: None,
    ) -> None:
        """`confirmed` is called between the broker's confirmation and the removal from the outbox."""
        self._url = url
        self._confirmed = confirmed
        self._topology = topology
        self._outbox = outbox
        self._clock = clock
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._connection: AbstractConnection | None = None
        self._stopping = False
        self._between_rounds = asyncio.Event()
        self._between_rounds.set()
        self.connected = False

    def start(self) -> None:
        """Begin to publish."""
        self._task = asyncio.create_task(self._run(), name=f"{self._topology.area}-relay")

    async def stop(self) -> None:
        """Stop, after what is being published if the broker answers. What was not confirmed stays."""
        self._stopping = True
        try:
            async with asyncio.timeout(STOP_GRACE_S):
                await self._between_rounds.wait()
        except TimeoutError:
            _logger.warning("relay_stops_while_publishing")
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def wake(self) -> None:
        """Look at the outbox now: something has just been written."""
        self._wake.set()

    async def _run(self) -> None:
        while not self._stopping:
            with _lasting("relay_interrupted"):
                try:
                    exchange = await self._connect()
                    self.connected = True
                    while not self._stopping:
                        await self._publish_next(exchange)
                    return
                finally:
                    self.connected = False
                    await _close(self._connection)
            await asyncio.sleep(RETRY_S)

    async def _connect(self) -> AbstractExchange:
        self._connection = await _connect(self._url)
        channel = await self._connection.channel(publisher_confirms=True, on_return_raises=True)
        return await self._topology.declare(channel)

    async def _publish_next(self, exchange: AbstractExchange) -> None:
        """Publish what is due, the most urgent queue first; wait when there is nothing."""
        if self._connection is None or self._connection.is_closed:
            raise ConnectionError("the connection has been lost")
        self._wake.clear()
        now = self._now()
        for queue in self._topology.queues:
            if messages := await self._outbox.take(now, [queue]):
                self._between_rounds.clear()
                try:
                    await self._publish_all(exchange, messages)
                finally:
                    self._between_rounds.set()
                # What is more urgent may have come meanwhile.
                return
        try:
            async with asyncio.timeout(POLL_S):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _publish_all(self, exchange: AbstractExchange, messages: Sequence[Message]) -> None:
        """Publish and remove; what is not confirmed is given back at once, also when this is cancelled."""
        gate = asyncio.Semaphore(IN_FLIGHT)
        confirmed: set[int] = set()
        refused = False
        publishing = [asyncio.create_task(self._publish(exchange, gate, each)) for each in messages]
        try:
            for message, done in zip(messages, publishing, strict=True):
                if await done:
                    confirmed.add(message.id)
                else:
                    refused = True
        finally:
            for task in publishing:
                task.cancel()
            outcomes = await asyncio.gather(*publishing, return_exceptions=True)
            # Confirmed while another one failed.
            confirmed.update(each.id for each, done in zip(messages, outcomes, strict=True) if done is True)
            if confirmed:
                self._confirmed()
            await asyncio.shield(self._put_away(messages, confirmed))
        if refused:
            await asyncio.sleep(RETRY_S)

    async def _put_away(self, messages: Sequence[Message], confirmed: set[int]) -> None:
        await self._outbox.passed_on(sorted(confirmed))
        left = [message.id for message in messages if message.id not in confirmed]
        await self._outbox.give_back(left, self._now())

    def _now(self) -> int:
        return round(self._clock().timestamp() * SECOND)

    async def _publish(self, exchange: AbstractExchange, gate: asyncio.Semaphore, message: Message) -> bool:
        """Publish one message. Tells whether it is confirmed, not refused by a full queue."""
        body = aio_pika.Message(
            message.subject_id.encode(),
            message_id=message.subject_id,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            content_type="text/plain",
        )
        async with gate:
            try:
                await exchange.publish(
                    body, routing_key=message.queue, mandatory=True, timeout=CONFIRM_LIMIT_S
                )
            except DeliveryError:
                _logger.warning("queue_full %s", message.queue)
                return False
        return True


class Consumer:
    """Brings messages to handlers; acknowledges a message once its handler has returned."""

    def __init__(
        self,
        url: str,
        topology: Topology,
        handlers: Mapping[str, Handler],
        concurrency: Mapping[str, int],
        buried: Buried,
    ) -> None:
        self._url = url
        self._topology = topology
        self._handlers = handlers
        self._concurrency = concurrency
        self._buried = buried
        self._task: asyncio.Task[None] | None = None
        self._connection: AbstractConnection | None = None
        self._running: set[asyncio.Task[None]] = set()
        self.ready = asyncio.Event()

    def start(self) -> None:
        """Begin to consume, as soon as the broker can be reached."""
        self._task = asyncio.create_task(self._run(), name=f"{self._topology.area}-consumer")

    async def stop(self) -> None:
        """Let handlers end for a moment; what they leave is delivered again, to whoever is there."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._running:
            await asyncio.wait(self._running, timeout=STOP_GRACE_S)
        await _close(self._connection)
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            lost = asyncio.Event()
            with _lasting("consumer_waits_for_broker"):
                subscribed = await self._subscribe(lost)
                self.ready.set()
                await _until_lost(lost, subscribed)
                _logger.warning("consumer_lost_its_broker")
            await _close(self._connection)
            await asyncio.sleep(RETRY_S)

    async def _subscribe(self, lost: asyncio.Event) -> Sequence[tuple[AbstractChannel, str]]:
        """Subscribe to every queue; `lost` is set when any of it ends. Returns channels and their consumers.

        All of it is made anew after each loss: connections that restore themselves do so only in part.
        """
        connection = await _connect(self._url)
        self._connection = connection
        connection.close_callbacks.add(lambda *_: lost.set())
        await self._topology.declare(await connection.channel())
        subscribed = []
        wanted: list[tuple[str, int, Callable[[AbstractIncomingMessage], Awaitable[None]]]] = [
            (self._topology.queue(name), self._concurrency[name], partial(self._receive, name))
            for name in self._topology.queues
            if name in self._handlers
        ]
        for queue_name, room, receive in [*wanted, (self._topology.dead_queue, 1, self._receive_dead)]:
            # A channel of its own: what one queue does to its channel must not stop the others.
            channel = await connection.channel()
            channel.close_callbacks.add(lambda *_: lost.set())
            await channel.set_qos(prefetch_count=room)
            queue = await channel.get_queue(queue_name)
            subscribed.append((channel, await queue.consume(receive)))
        return subscribed

    async def _receive(self, name: str, message: AbstractIncomingMessage) -> None:
        """Begin to work a message off, in a task of its own.

        A channel that closes cancels the tasks in which it delivers: what a provider is being asked for goes
        on all the same, for it is paid.
        """
        task = asyncio.create_task(self._work_off(name, message))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _work_off(self, name: str, message: AbstractIncomingMessage) -> None:
        try:
            await self._handlers[name](message.body.decode())
        except Exception:
            _logger.exception("message_failed %s %s", name, message.message_id)
            await asyncio.sleep(RETRY_S)
            # Counts towards the delivery limit: a message that always fails ends among the dead.
            await _answered(message.reject(requeue=True))
            return
        await _answered(message.ack())

    async def _receive_dead(self, message: AbstractIncomingMessage) -> None:
        deaths = message.headers.get("x-death") or []
        first = deaths[0] if isinstance(deaths, list) and deaths else {}
        queue = str(first.get("queue", "")) if isinstance(first, dict) else ""
        reason = str(first.get("reason", "")) if isinstance(first, dict) else ""
        try:
            await self._buried(queue.rpartition(".v")[0] or queue, message.body.decode(), reason or "unknown")
        except Exception:
            _logger.exception("dead_letter_not_kept %s", message.message_id)
            await asyncio.sleep(RETRY_S)
            await _answered(message.reject(requeue=True))
            return
        await _answered(message.ack())


async def _until_lost(lost: asyncio.Event, subscribed: Sequence[tuple[AbstractChannel, str]]) -> None:
    """Return when the connection, a channel or a consumer has gone, which a broker cancels without a word."""
    while not lost.is_set():
        for channel, tag in subscribed:
            underlay: Any = await channel.get_underlay_channel()
            if tag not in underlay.consumers:
                return
        try:
            async with asyncio.timeout(LOOK_S):
                await lost.wait()
        except TimeoutError:
            continue


async def _connect(url: str) -> AbstractConnection:
    """Connect; the URL itself may ask for another heartbeat."""
    asked = "heartbeat" in dict(parse_qsl(urlsplit(url).query))
    if asked:
        return await aio_pika.connect(url, timeout=CONFIRM_LIMIT_S)
    return await aio_pika.connect(url, timeout=CONFIRM_LIMIT_S, heartbeat=HEARTBEAT_S)


@contextmanager
def _lasting(what: str) -> Iterator[None]:
    """Let a loop outlive what its client raises when a wire breaks in the midst of a call.

    That is more than errors of its own: also bare ones, and cancellations that nobody asked our task for.
    """
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        _logger.warning("%s CancelledError", what)
    except Exception as error:
        expected = isinstance(error, (*BROKEN, SQLAlchemyError)) or type(error) is Exception
        _logger.warning("%s %s", what, type(error).__name__, exc_info=None if expected else error)


async def _close(connection: AbstractConnection | None) -> None:
    if connection is not None:
        with _lasting("connection_not_closed"):
            await asyncio.wait_for(connection.close(), STOP_GRACE_S)


async def _answered(answer: Awaitable[None]) -> None:
    """Tell the broker, if it is still there: otherwise it delivers the message again."""
    with _lasting("answer_lost"):
        await answer
