"""The outbox through a real RabbitMQ: nothing is lost, nobody waits for a dead broker for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import DeliveryError
from aiormq.exceptions import ChannelPreconditionFailed

from services.common import bus
from services.common.bus import DELIVERY_LIMIT, Consumer, Relay, Topology
from services.common.clock import now
from services.common.db import Database
from services.common.outbox import Outbox
from services.workflow import tables
from tests.integration.jobs.conftest import MIGRATIONS
from tests.support.fault_proxy import fault_proxy
from tests.support.rabbitmq import Broker

# Queues of their own: other tests leave messages in those of jobs.
TOPOLOGY = Topology("bus", ("bus.late.interactive", "bus.submit.interactive"))
QUEUE = TOPOLOGY.queues[0]


@pytest_asyncio.fixture
async def outbox(tmp_path: Path) -> AsyncIterator[Outbox]:
    database = Database(f"sqlite:///{tmp_path / 'workflow.db'}", "workflow")
    await database.migrate(MIGRATIONS)
    yield Outbox(database, tables.outbox)
    await database.close()


async def append(outbox: Outbox, *subjects: str) -> None:
    async with outbox._database.transaction() as connection:
        for subject in subjects:
            await outbox.append(connection, QUEUE, subject, round(now().timestamp() * 1e6))


class Seen:
    """A handler that remembers, and a grave."""

    def __init__(self) -> None:
        self.subjects: list[str] = []
        self.buried: list[tuple[str, str, str]] = []
        self.poison = ""
        self.gate = asyncio.Event()
        self.gate.set()
        self.finished: list[str] = []
        self.changed = asyncio.Condition()

    async def handle(self, subject: str) -> None:
        async with self.changed:
            self.subjects.append(subject)
            self.changed.notify_all()
        if subject == self.poison:
            raise RuntimeError("poison")
        await self.gate.wait()
        async with self.changed:
            self.finished.append(subject)
            self.changed.notify_all()

    async def bury(self, queue: str, subject: str, reason: str) -> None:
        async with self.changed:
            self.buried.append((queue, subject, reason))
            self.changed.notify_all()

    async def until(self, condition) -> None:
        async with asyncio.timeout(60), self.changed:
            await self.changed.wait_for(condition)


def a_consumer(broker: Broker, seen: Seen, url: str = "", make: type[Consumer] = Consumer) -> Any:
    return make(
        url or broker.url,
        TOPOLOGY,
        dict.fromkeys(TOPOLOGY.queues, seen.handle),
        dict.fromkeys(TOPOLOGY.queues, 10),
        seen.bury,
    )


def test_the_broker_itself_dies_with_the_tests(broker):
    # The kernel ends the process that was started, and none behind it.
    assert Path(f"/proc/{broker.pid}/comm").read_text() == "beam.smp\n"


async def test_messages_arrive_and_leave_the_outbox(broker, outbox):
    seen = Seen()
    relay, consumer = Relay(broker.url, TOPOLOGY, outbox, now), a_consumer(broker, seen)
    await append(outbox, *(f"att_{number}" for number in range(50)))
    relay.start()
    consumer.start()
    await seen.until(lambda: len(seen.subjects) == 50)
    assert sorted(set(seen.subjects)) == sorted(f"att_{number}" for number in range(50))
    # A relay that stops notes what it has published.
    await relay.stop()
    await consumer.stop()
    assert await outbox.oldest() is None


async def test_a_message_that_always_fails_is_buried(broker, outbox, caplog):
    seen = Seen()
    seen.poison = "att_poison"
    relay, consumer = Relay(broker.url, TOPOLOGY, outbox, now), a_consumer(broker, seen)
    await append(outbox, "att_poison", "att_good")
    relay.start()
    consumer.start()
    await seen.until(lambda: seen.buried)
    assert seen.buried == [(QUEUE, "att_poison", "delivery_limit")]
    assert seen.subjects.count("att_poison") == DELIVERY_LIMIT + 1
    assert seen.subjects.count("att_good") == 1
    await relay.stop()
    await consumer.stop()


async def test_a_killed_broker_loses_nothing(broker, outbox):
    seen = Seen()
    relay, consumer = Relay(broker.url, TOPOLOGY, outbox, now), a_consumer(broker, seen)
    relay.start()
    consumer.start()
    await asyncio.wait_for(consumer.ready.wait(), 30)
    await append(outbox, *(f"att_a{number}" for number in range(30)))
    await seen.until(lambda: len(seen.subjects) >= 10)
    await asyncio.to_thread(broker.kill)
    await append(outbox, *(f"att_b{number}" for number in range(30)))
    await asyncio.to_thread(broker.start)
    wanted = {f"att_{letter}{number}" for letter in "ab" for number in range(30)}
    # What was taken from the outbox when the broker died is due again after a while.
    relay_again = Relay(broker.url, TOPOLOGY, outbox, now)
    relay_again.start()
    await seen.until(lambda: wanted <= set(seen.subjects))
    await relay.stop()
    await relay_again.stop()
    await consumer.stop()


class Capturing(Consumer):
    """A consumer whose messages a test can see."""

    messages: list[AbstractIncomingMessage]

    async def _receive(self, name: str, message: AbstractIncomingMessage) -> None:
        self.messages.append(message)
        await super()._receive(name, message)


@pytest.mark.parametrize("broken", ["wire", "channel"])
async def test_what_is_being_worked_off_goes_on_when_the_broker_is_lost(broker, outbox, broken):
    """A provider that is being asked is paid: it is not left in the middle.

    A wire breaks; or the broker closes the channel, as it does after its consumer timeout.
    """
    seen = Seen()
    seen.gate.clear()
    async with fault_proxy(broker.port) as proxy:
        consumer = a_consumer(broker, seen, f"amqp://guest:guest@127.0.0.1:{proxy.port}/", Capturing)
        consumer.messages = []
        consumer.start()
        relay = Relay(broker.url, TOPOLOGY, outbox, now)
        relay.start()
        await append(outbox, "att_1")
        await seen.until(lambda: seen.subjects == ["att_1"])
        if broken == "wire":
            assert proxy.cut() == 1
        else:
            channel = consumer.messages[0].channel
            await channel.basic_ack(delivery_tag=4711)
            with pytest.raises(ChannelPreconditionFailed):
                await channel.closing
        # The broker delivers it again; that it is taken already is known where claims are.
        await seen.until(lambda: seen.subjects == ["att_1", "att_1"])
        seen.gate.set()
        await seen.until(lambda: seen.finished == ["att_1", "att_1"])
        await consumer.stop()
        await relay.stop()


async def test_a_relay_without_work_comes_back_too(broker, outbox):
    async with fault_proxy(broker.port) as proxy:
        relay = Relay(f"amqp://guest:guest@127.0.0.1:{proxy.port}/", TOPOLOGY, outbox, now)
        relay.start()
        for _ in range(2):
            await proxy.until_connected(1)
            assert proxy.cut() == 1
            await proxy.until_connected_less_than(1)
        await proxy.until_connected(1)
        await relay.stop()


@pytest.mark.parametrize("error", [Exception(), asyncio.CancelledError(), RuntimeError("handler is closed")])
async def test_no_error_of_the_client_ends_a_loop(broker, outbox, monkeypatch, caplog, error):
    """It has raised bare exceptions, and cancellations that nobody asked for."""
    connect, raised = bus._connect, []

    async def once(url: str):
        if len(raised) < 2:
            raised.append(url)
            raise error
        return await connect(url)

    monkeypatch.setattr(bus, "_connect", once)
    monkeypatch.setattr(bus, "RETRY_S", 0.01)
    seen = Seen()
    relay, consumer = Relay(broker.url, TOPOLOGY, outbox, now), a_consumer(broker, seen)
    relay.start()
    consumer.start()
    await append(outbox, "att_1")
    await seen.until(lambda: seen.subjects == ["att_1"])
    assert len(raised) == 2
    # Only what is not known yet is logged whole.
    assert [bool(record.exc_info) for record in caplog.records] == [isinstance(error, RuntimeError)] * 2
    await asyncio.wait_for(asyncio.gather(relay.stop(), consumer.stop()), 10)


async def test_a_full_queue_refuses_and_nothing_is_lost(broker, outbox):
    seen = Seen()
    topology = Topology("narrow", (QUEUE,), version=9, length_limit=3)
    relay = Relay(broker.url, topology, outbox, now)
    await append(outbox, *(f"att_{number}" for number in range(20)))
    relay.start()
    consumer = Consumer(broker.url, topology, {QUEUE: seen.handle}, {QUEUE: 5}, seen.bury)
    consumer.start()
    await seen.until(lambda: len(set(seen.subjects)) == 20)
    await relay.stop()
    await consumer.stop()


class Refusing:
    """A full broker."""

    async def publish(self, *arguments, **options):
        raise DeliveryError(None, None)


async def test_what_a_relay_cannot_publish_it_gives_back_at_once(outbox):
    relay = Relay("amqp://nowhere/", TOPOLOGY, outbox, now)
    await append(outbox, "att_1", "att_2")
    taken = await outbox.take(round(now().timestamp() * 1e6), [QUEUE])
    assert not await outbox.take(round(now().timestamp() * 1e6), [QUEUE])
    await relay._publish_all(Refusing(), taken)
    assert await outbox.take(round(now().timestamp() * 1e6), [QUEUE]) == taken
