"""`kill -9` under load: nothing delivered is lost, nothing is charged twice, nothing stays reserved."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import httpx

from tests.support.books import Books
from tests.support.deployment import running_suite
from tests.support.eventually import eventually
from tests.support.suite import Suite
from tests.support.upstream import Upstream

STREAMS = 200
# The shortest that leaves room for a renewal; see services/router/accounting/leases.py.
LEASE_TTL_S = "10"
NANO = 10**9


class Client:
    """One caller: streams a chat and remembers what it was told."""

    def __init__(self, suite: Suite, model: str, marker: str, progress: asyncio.Event) -> None:
        self._progress = progress
        self._suite = suite
        self._model = model
        self._marker = marker
        self.decision_id = ""
        self.delivered: dict[str, Any] = {}
        """The `omnihub` object of the finish chunk, once it was seen."""
        self.broken = False

    async def run(self, session: aiohttp.ClientSession) -> None:
        body = {
            "model": self._model,
            "stream": True,
            "max_tokens": 100,
            "messages": [{"role": "user", "content": self._marker}],
        }
        headers = {"authorization": f"Bearer {self._suite.key}"}
        url = f"{self._suite.openai_url}/chat/completions"
        try:
            async with session.post(url, json=body, headers=headers) as answer:
                self.decision_id = answer.headers.get("x-omnihub-decision-id", "")
                async for line in answer.content:
                    self._read(line)
        except aiohttp.ClientError:
            self.broken = True
        self.broken = self.broken or not self.delivered

    def _read(self, line: bytes) -> None:
        if line.startswith(b"data: {"):
            chunk = json.loads(line[6:])
            if "omnihub" in chunk and "error" not in chunk:
                self.delivered = chunk["omnihub"]
                self._progress.set()


async def load(
    suite: Suite,
    marker: str,
    now: Callable[[list[Client]], bool],
    act: Callable[[], object],
    provider: str = "wall",
) -> list[Client]:
    """Run STREAMS callers at once, and `act` as soon as `now` holds."""
    progress = asyncio.Event()
    # Every fourth finishes early; the rest would take many seconds.
    models = [f"{provider}/paced-{'90-100' if number % 4 else '5-20'}" for number in range(STREAMS)]
    clients = [Client(suite, model, marker, progress) for model in models]
    timeout = aiohttp.ClientTimeout(total=100)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        tasks = [asyncio.create_task(client.run(session)) for client in clients]
        async with asyncio.timeout(80):
            while not now(clients):
                progress.clear()
                await progress.wait()
        act()
        await asyncio.gather(*tasks)
    return clients


def test_killing_everything_loses_no_money(tmp_path: Path, upstream: Upstream) -> None:
    environment = {"OMNIHUB_BILLING__LEASE_TTL_S": LEASE_TTL_S}
    marker = uuid4().hex
    with running_suite(tmp_path, upstream, "one", environment) as suite:

        def half_way(clients: list[Client]) -> bool:
            running = [seen for seen in upstream.seen(marker) if seen.state == "open"]
            return sum(bool(client.delivered) for client in clients) >= 40 and len(running) >= 100

        in_flight = []

        def kill() -> None:
            in_flight.extend(seen for seen in upstream.seen(marker) if seen.state == "open")
            suite.kill()

        clients = asyncio.run(load(suite, marker, half_way, kill))
        delivered = {
            client.delivered["decision_id"]: client.delivered for client in clients if client.delivered
        }
        assert len(delivered) >= 40
        assert len(in_flight) >= 100, "the fault was to hit running streams"
        assert sum(client.broken for client in clients) >= 100

        suite.start()
        headers = {"authorization": f"Bearer {suite.key}"}

        def balance() -> dict[str, str]:
            answer: dict[str, str] = httpx.get(f"{suite.url}/api/balance", headers=headers, timeout=20).json()
            return answer

        seen = eventually(balance, lambda seen: seen["leased"] == seen["held"] == "0", 60)
        assert not any(suite.stop().values())

    books = Books(tmp_path / "data")
    books.check()
    assert Decimal(seen["balance"]) == Decimal(100) - Decimal(books.spent()) / NANO
    times = books.charges_of_decisions()
    charges = books.charges()
    assert max(times.values()) == 1, "charged twice"
    for decision_id, facts in delivered.items():
        assert times[decision_id] == 1, "delivered and not charged"
        assert charges[decision_id] == (int(Decimal(facts["cost"]) * NANO), "complete")
    journal = books.journal()
    assert all(journal.values()), "something is not settled"
    # Besides what was delivered: what was recorded when the process died, before its caller saw the end.
    started = {client.decision_id for client in clients}
    assert set(times) - set(delivered) <= started
    assert all(charges[extra][1] == "complete" for extra in set(times) - set(delivered))


def test_a_router_that_dies_is_missed_and_found_again(tmp_path: Path, upstream: Upstream) -> None:
    marker = uuid4().hex
    with running_suite(tmp_path, upstream, "router apart") as suite:

        def running(clients: list[Client]) -> bool:
            return sum(bool(client.delivered) for client in clients) >= 20

        clients = asyncio.run(load(suite, marker, running, lambda: suite.kill_process("router")))
        delivered = {client.delivered["decision_id"] for client in clients if client.delivered}
        assert sum(client.broken for client in clients) >= 100
        # The others live on, and say what is missing.
        headers = {"authorization": f"Bearer {suite.key}"}
        missing = httpx.get(f"{suite.url}/ready", timeout=20)
        assert missing.status_code == 503
        assert "router" in missing.text
        refused = httpx.get(f"{suite.url}/v1/models", headers=headers, timeout=20)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "service_unavailable")
        assert httpx.get(f"{suite.url}/api/balance", headers=headers, timeout=20).status_code == 200
        assert upstream.wait_for(lambda: not [s for s in upstream.seen(marker) if s.state == "open"])

        suite.start_process("router")
        suite.wait_until_ready()
        body = {"model": "support-chat", "messages": [{"role": "user", "content": "again"}]}
        again = httpx.post(f"{suite.openai_url}/chat/completions", json=body, headers=headers, timeout=20)
        assert again.status_code == 200
        delivered.add(again.headers["x-omnihub-decision-id"])

        def charged() -> float:
            usage = httpx.get(f"{suite.url}/v1/usage", headers=headers, timeout=20).json()
            return float(usage["total"]["requests"])

        eventually(charged, lambda seen: seen >= len(delivered))
        assert not any(suite.stop().values())
    books = Books(tmp_path / "data")
    times = books.charges_of_decisions()
    assert max(times.values()) == 1
    assert delivered <= set(times)
