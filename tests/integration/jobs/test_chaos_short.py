"""The short forms of tests/chaos: with RabbitMQ, a few kills each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.job_chaos import break_wires, kill_relays, kill_workers, restart_under_load
from tests.support.job_cluster import running_cluster
from tests.support.postgresql import KillableServer
from tests.support.rabbitmq import Broker

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


async def test_a_killed_database(tmp_path: Path) -> None:
    """Without a broker: two workers share the work through a PostgreSQL that goes away."""
    server = KillableServer()
    server.start()
    try:
        async with running_cluster(tmp_path, server.url) as cluster:
            await restart_under_load(cluster, 2, server.kill, server.start, "PostgreSQL", 1.0)
    finally:
        server.remove()
