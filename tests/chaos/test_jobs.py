"""Long forms of the crash tests of jobs: `make chaos`. Each prints a line that sums it up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common import log
from tests.support.job_chaos import break_wires, kill_relays, kill_workers, restart_under_load
from tests.support.job_cluster import running_cluster
from tests.support.postgresql import KillableServer
from tests.support.rabbitmq import Broker, private_broker

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]
WORKER_CRASHES = 21
# Long enough that a busy machine takes nobody for dead who lives.
LEASE_S = 3.0
RELAY_CRASHES = 5
BROKER_CRASHES = 6
DATABASE_CRASHES = 10
WIRES_BROKEN = 5


@pytest.fixture(autouse=True)
def quiet() -> None:
    """Leave the lines that sum up alone: not one for every call of the fakes."""
    log.configure(json=True, level="warning")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with private_broker(tmp_path_factory.mktemp("broker")) as running:
        yield running


async def test_workers(tmp_path: Path, postgresql_url: str, broker: Broker) -> None:
    async with running_cluster(tmp_path, postgresql_url, broker.url) as cluster:
        print(f"\n{await kill_workers(cluster, WORKER_CRASHES, lease_s=LEASE_S)}")


async def test_relays(tmp_path: Path, postgresql_url: str, broker: Broker) -> None:
    async with running_cluster(tmp_path, postgresql_url, broker.url) as cluster:
        print(f"\n{await kill_relays(cluster, RELAY_CRASHES)}")


async def test_wires(tmp_path: Path, postgresql_url: str, broker: Broker) -> None:
    async with running_cluster(tmp_path, postgresql_url, broker.url) as cluster:
        print(f"\n{await break_wires(cluster, broker.port, WIRES_BROKEN)}")


async def test_broker(tmp_path: Path, postgresql_url: str, broker: Broker) -> None:
    async with running_cluster(tmp_path, postgresql_url, broker.url) as cluster:
        line = await restart_under_load(cluster, BROKER_CRASHES, broker.kill, broker.start, "broker", 5.0)
        print(f"\n{line}")


async def test_database(tmp_path: Path, broker: Broker) -> None:
    server = KillableServer()
    server.start()
    try:
        async with running_cluster(tmp_path, server.url, broker.url) as cluster:
            line = await restart_under_load(
                cluster, DATABASE_CRASHES, server.kill, server.start, "PostgreSQL", 5.0
            )
            print(f"\n{line}")
    finally:
        server.remove()
