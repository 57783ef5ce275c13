"""A thousand callers at the same time, for a limit that only fifty of them fit into."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import aiohttp

from tests.support.tenant import Tenant
from tests.support.upstream import Upstream

PATIENCE_S = 200
# A refusal that another caller's end could lift, and one that none could.
REFUSALS = {(402, "in_flight_budget_exhausted"), (402, "insufficient_credits"), (403, "budget_limit")}


@dataclass
class Crowd:
    """What became of all of them."""

    marker: str = field(default_factory=lambda: uuid4().hex)
    delivered: list[str] = field(default_factory=list)
    """Decision ids of whole answers."""
    refused: Counter[tuple[int, str]] = field(default_factory=Counter)


async def crowd(urls: list[str], tenant: Tenant, upstream: Upstream, *, count: int, stream: bool) -> Crowd:
    """Send `count` requests at the same time, spread over `urls`.

    Answers are held back at the provider until everybody else was refused: who was admitted is all under
    way at the same moment.
    """
    seen = Crowd()
    upstream.close_gate()
    body: dict[str, Any] = {
        "model": "toll/gated",
        "stream": stream,
        "max_tokens": 16,
        "messages": [{"role": "user", "content": seen.marker}],
    }
    headers = {"authorization": f"Bearer {tenant.key}"}
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    changed = asyncio.Event()

    async def ask(session: aiohttp.ClientSession, url: str) -> None:
        async with session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as answer:
            if answer.status != 200:
                code = (await answer.json())["error"]["code"]
                seen.refused[answer.status, code] += 1
                changed.set()
                return
            text = await answer.text()
            assert not stream or "data: [DONE]" in text, text[-500:]
            seen.delivered.append(answer.headers["x-omnihub-decision-id"])

    connector = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
        asyncio.timeout(PATIENCE_S),
        asyncio.TaskGroup() as tasks,
    ):
        for number in range(count):
            tasks.create_task(ask(session, urls[number % len(urls)]))
        while seen.refused.total() + len(upstream.seen(seen.marker)) < count:
            # The provider's side can only be looked at.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), 0.05)
            changed.clear()
        upstream.open_gate()
    return seen
