"""The short forms of tests/chaos: with RabbitMQ, a few kills each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.job_chaos import break_wires, kill_relays, kill_workers, restart_under_load
from tests.support.job_cluster import ServedRouter, running_cluster
from tests.support.postgresql import KillableServer
from tests.support.rabbitmq import Broker, private_broker

pytestmark = pytest.mark.timeout(480)


async def test_killed_workers(tmp_path: Path, postgresql_url: str, broker: Broker) -> None:
    async with running_cluster(tmp_path, postgresql_url, broker.url) as cluster:
        await kill_workers(cluster, 3, in_flight=40)


async def test_relays_that_die_after_a_confirmation(
    tmp_path: Path, postgresql_url: str, broker: Broker
) -> None:
    async with running_cluster(tmp_path, postgresql_url, broker.url) as cluster:
        await kill_relays(cluster, 1)


async def test_a_broken_wire_to_the_broker(tmp_path: Path, postgresql_url: str, broker: Broker) -> None:
    """F4: reset, closed in one direction, stalled."""
    async with running_cluster(tmp_path, postgresql_url, broker.url) as cluster:
        await break_wires(cluster, broker.port, 1)


async def test_a_killed_broker(tmp_path: Path, postgresql_url: str, broker: Broker) -> None:
    async with running_cluster(tmp_path, postgresql_url, broker.url) as cluster:
        await restart_under_load(cluster, 1, broker.kill, broker.start, "broker", 1.0)


async def test_consumers_that_hold_a_message_for_too_long(tmp_path: Path, postgresql_url: str) -> None:
    """The broker takes messages back while providers are asked: they go on, and no other is asked."""
    impatient = "-rabbit consumer_timeout 1000 -rabbit channel_tick_interval 500"
    router = ServedRouter(pause_s=4.0)
    with private_broker(tmp_path, impatient) as broker:
        async with running_cluster(tmp_path, postgresql_url, broker.url, router) as cluster:
            await cluster.spawn("workflow")
            for _ in range(2):
                await cluster.spawn()
            await cluster.submit(6)
            await cluster.check()
            assert set(router.submitted.values()) == {1}
        assert "Timeout value used" in broker.log


async def test_a_killed_database(tmp_path: Path) -> None:
    """Without a broker: two workers share the work through a PostgreSQL that goes away."""
    server = KillableServer()
    server.start()
    try:
        async with running_cluster(tmp_path, server.url) as cluster:
            await restart_under_load(cluster, 2, server.kill, server.start, "PostgreSQL", 1.0)
    finally:
        server.remove()
