"""`serve --workers 2`: the same promises, kept by several processes behind one edge."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import openai
import psycopg
import pytest

from tests.e2e.test_crash import load
from tests.support import postgresql
from tests.support.eventually import eventually
from tests.support.fleet import TOLL
from tests.support.suite import STOP_TIMEOUT_S
from tests.support.tenant import Tenant, a_tenant
from tests.support.thousand import admit_exactly_fifty
from tests.support.upstream import ANSWER, Upstream
from tests.support.workers import TARGET, WorkerSuite, running_workers

pytestmark = pytest.mark.postgresql
NANO = 10**9
VISIBLE_WITHIN_S = 5.0
MESSAGES: Any = [{"role": "user", "content": "?"}]
BODY = {"model": "local/echo", "messages": MESSAGES}
# Leases of the dead end soon.
SHORT_LEASES = {"OMNIHUB_BILLING__LEASE_TTL_S": "10"}


@pytest.fixture(scope="module")
def database(postgresql_server: postgresql.Server) -> Iterator[str]:
    """A database of this file's suite."""
    with postgresql_server.database() as url:
        yield url


@pytest.fixture(scope="module")
def suite(
    upstream: Upstream, database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerSuite]:
    """Two workers, shared by the tests of this file."""
    environment = {"OMNIHUB_DATABASE_URL": database, **SHORT_LEASES}
    with running_workers(tmp_path_factory.mktemp("workers"), upstream, environment) as running:
        yield running
        assert "the books add up" in running.command("billing", "check")


def test_requests_are_spread_and_counted_per_worker(suite: WorkerSuite) -> None:
    headers = {"authorization": f"Bearer {suite.key}"}
    with ThreadPoolExecutor(8) as pool:
        asked = [
            pool.submit(
                httpx.post, f"{suite.url}/v1/chat/completions", json=BODY, headers=headers, timeout=20
            )
            for _ in range(64)
        ]
        assert {each.result().status_code for each in asked} == {200}
    counted = [
        line
        for line in suite.metrics().splitlines()
        if line.startswith("gen_ai_server_request_duration_seconds_count")
    ]
    for number in suite.numbers:
        own = [float(line.rpartition(" ")[2]) for line in counted if f'worker="{number}"' in line]
        assert sum(own) >= 8, counted


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_thousand_at_once(suite: WorkerSuite, upstream: Upstream, stream: bool) -> None:
    admit_exactly_fifty(suite, upstream, "credits", stream, 1)


def statuses(suite: WorkerSuite, tenant: Tenant) -> set[int]:
    """Return what each worker answers to a key, asked past the edge."""
    found = set()
    for number in suite.numbers:
        with suite.worker(number) as worker:
            headers = {"authorization": f"Bearer {tenant.key}"}
            found.add(worker.post("/v1/chat/completions", json=BODY, headers=headers).status_code)
    return found


def test_a_revoked_key_is_refused_by_every_worker_within_five_seconds(suite: WorkerSuite) -> None:
    tenant = a_tenant(suite)
    assert statuses(suite, tenant) == {200}
    revoked = httpx.delete(
        f"{suite.url}/api/keys/{tenant.key_id}", headers={"authorization": f"Bearer {tenant.key}"}, timeout=20
    )
    began = time.monotonic()
    assert revoked.is_success, revoked.text
    eventually(lambda: statuses(suite, tenant), lambda seen: seen == {401}, VISIBLE_WITHIN_S)
    assert time.monotonic() - began < VISIBLE_WITHIN_S


def test_a_worker_that_is_killed_loses_no_money_and_comes_back(
    suite: WorkerSuite, upstream: Upstream, database: str
) -> None:
    marker = uuid4().hex
    before = suite.pids()
    assert len(before) == 2

    def half_way(clients: list[Any]) -> bool:
        running = [seen for seen in upstream.seen(marker) if seen.state == "open"]
        return sum(bool(client.delivered) for client in clients) >= 40 and len(running) >= 100

    clients = asyncio.run(load(suite, marker, half_way, suite.kill_worker, provider="toll"))
    delivered = {client.delivered["decision_id"] for client in clients if client.delivered}
    broken = sum(client.broken for client in clients)
    # One of two died: its callers lost their streams, the others' went on.
    assert 20 <= broken <= 160, broken
    assert len(delivered) >= len(clients) - broken

    eventually(lambda: suite.is_ready() and len(suite.pids()) == 2, within_s=60)
    assert set(suite.pids()) != set(before)
    assert (
        "omnihub_workers_restarts_total"
        in httpx.get(f"{suite.internal_url(TARGET)}/metrics", timeout=20).text
    )
    assert statuses(suite, a_tenant(suite)) == {200}

    def reserved() -> dict[str, str]:
        headers = {"authorization": f"Bearer {suite.key}"}
        answer: dict[str, str] = httpx.get(f"{suite.url}/api/balance", headers=headers, timeout=10).json()
        return answer

    with psycopg.connect(database) as connection:
        journal = (
            "SELECT decision_id, attempt_id NOT IN (SELECT attempt_id FROM router.unsettled) "
            "FROM router.journal WHERE decision_id = ANY(%s) AND charge != ''"
        )
        eventually(reserved, lambda seen: seen["leased"] == seen["held"] == "0", 60)
        eventually(
            lambda: connection.execute(journal, [list(delivered)]).fetchall(),
            lambda rows: len(rows) == len(delivered) and all(settled for _, settled in rows),
            60,
        )
        charges = connection.execute(
            "SELECT decision_id, COUNT(*), SUM(amount) FROM billing.usage_event "
            "WHERE decision_id = ANY(%s) GROUP BY decision_id",
            [list(delivered)],
        ).fetchall()
    assert {decision for decision, _, _ in charges} == delivered
    assert {(times, int(amount)) for _, times, amount in charges} == {(1, int(Decimal(TOLL) * NANO))}


@pytest.mark.new_database
def test_streams_under_way_finish_before_the_workers_do(
    tmp_path: Path, upstream: Upstream, postgresql_url: str
) -> None:
    upstream.close_gate()
    environment = {"OMNIHUB_DATABASE_URL": postgresql_url}
    with (
        running_workers(tmp_path, upstream, environment) as suite,
        ThreadPoolExecutor(4) as pool,
        openai.OpenAI(base_url=suite.openai_url, api_key=suite.key, max_retries=0, timeout=40) as client,
    ):
        process, workers = suite.processes[TARGET], suite.pids()
        streams = [
            client.chat.completions.create(model="toll/gated", messages=MESSAGES, stream=True)
            for _ in range(4)
        ]
        first = [next(stream) for stream in streams]
        process.send_signal(signal.SIGTERM)
        eventually(lambda: not suite.is_ready(), within_s=30)
        rest = [pool.submit(list, stream) for stream in streams]
        assert suite.pids() == workers
        upstream.open_gate()
        for begun, following in zip(first, rest, strict=True):
            chunks = [begun, *following.result(30)]
            assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
            assert chunks[-1].model_extra["omnihub"]["state"] == "complete"
        assert process.wait(STOP_TIMEOUT_S) == 0
        suite.processes.clear()
        assert not [pid for pid in workers if os.path.exists(f"/proc/{pid}")]
    with psycopg.connect(postgresql_url) as connection:
        rows = connection.execute("SELECT COUNT(*), SUM(amount) FROM billing.usage_event").fetchone()
        reserved = connection.execute(
            "SELECT COUNT(*) FROM billing.account WHERE held + leased != 0"
        ).fetchone()
    assert rows == (4, 4 * int(Decimal(TOLL) * NANO))
    assert reserved == (0,), "an orderly stop returns what was leased"
