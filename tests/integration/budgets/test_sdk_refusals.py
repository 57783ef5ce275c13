"""Each refusal of a limit as the vendors' own clients see it, and the headers on answers that succeed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from services.common.rpc import Identity
from services.credits.money import NANO
from services.providers.settings import ProviderSettings
from services.router.accounting.budgets import Budgets
from tests.support.budgets import Replica, World, open_world
from tests.support.stack import Stack, running_stack

MODEL = "echo/echo"
ORGANISATION = "org_1"
MESSAGES: Any = [{"role": "user", "content": "hello"}]
WHO = Identity(organisation_id=ORGANISATION, key_id="key_1")


@dataclass
class Limited:
    """A gateway and a router with the limits of a real billing store."""

    world: World
    stack: Stack
    replica: Replica
    refused: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def budgets(self) -> Budgets:
        return self.replica.budgets

    async def limit(self, *terms: str, **more: Any) -> None:
        await self.world.limit(ORGANISATION, *terms, **more)
        await self.budgets.rules.reload([ORGANISATION])

    def openai(self, retries: int = 0) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            api_key=self.stack.key,
            base_url=f"{self.stack.url}/v1",
            max_retries=retries,
            http_client=self.wire(openai.DefaultAsyncHttpxClient),
        )

    def anthropic(self, retries: int = 0) -> anthropic.AsyncAnthropic:
        return anthropic.AsyncAnthropic(
            api_key=self.stack.key,
            base_url=self.stack.url,
            max_retries=retries,
            http_client=self.wire(anthropic.DefaultAsyncHttpxClient),
        )

    def wire(self, make: Callable[..., httpx.AsyncClient]) -> httpx.AsyncClient:
        """Make what a client sends with by default, and see its refusals."""

        async def look(answer: httpx.Response) -> None:
            if answer.status_code == 429:
                self.refused.set()

        return make(event_hooks={"response": [look]})

    async def ask(self, max_tokens: int = 10, retries: int = 0, **more: Any) -> Any:
        async with self.openai(retries) as client:
            return await client.chat.completions.with_raw_response.create(
                model=MODEL, messages=MESSAGES, max_tokens=max_tokens, **more
            )

    async def tell(self, max_tokens: int = 10, retries: int = 0, **more: Any) -> Any:
        async with self.anthropic(retries) as client:
            return await client.messages.with_raw_response.create(
                model=MODEL, messages=MESSAGES, max_tokens=max_tokens, **more
            )


@pytest.fixture
async def limited(tmp_path: Path) -> AsyncIterator[Limited]:
    providers = {"echo": ProviderSettings(adapter="local")}
    async with (
        open_world(f"sqlite:///{tmp_path / 'billing.db'}") as world,
        running_stack(tmp_path, providers, [MODEL]) as stack,
    ):
        await world.store.welcome([], world.micros)
        await _open(world)
        replica = world.replica()
        stack.router.admission._budgets = replica.budgets
        stack.router.planner._plans = replica.budgets.rules.of
        yield Limited(world, stack, replica)


async def _open(world: World) -> None:
    async with world.database.transaction() as connection:
        await world.store._open(connection, [ORGANISATION], world.micros)


async def test_requests_per_minute(limited: Limited) -> None:
    await limited.limit("requests", "minute", "2")
    first = await limited.ask()
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["x-ratelimit-reset-requests"] == "30s"
    second = await limited.tell()
    assert second.headers["anthropic-ratelimit-requests-limit"] == "2"
    assert second.headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert second.headers["anthropic-ratelimit-requests-reset"].endswith("Z")
    with pytest.raises(openai.RateLimitError) as caught:
        await limited.ask()
    assert caught.value.response.headers["retry-after"] == "30"
    assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"
    assert caught.value.code == "rate_limit_exceeded"
    with pytest.raises(anthropic.RateLimitError) as told:
        await limited.tell()
    assert told.value.response.headers["retry-after"] == "30"
    assert told.value.response.headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert told.value.body["error"]["type"] == "rate_limit_error"  # type: ignore[index]


async def test_streams_carry_the_headers_too(limited: Limited) -> None:
    await limited.limit("tokens", "minute", "100000")
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 10, "stream": True}
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {limited.stack.key}"}) as client:
        answer = await client.post(f"{limited.stack.url}/v1/chat/completions", json=body)
    assert answer.headers["x-ratelimit-limit-tokens"] == "100000"
    assert "x-ratelimit-limit-requests" not in answer.headers
    assert answer.text.rstrip().endswith("[DONE]")


async def test_clients_wait_as_long_as_they_are_told(limited: Limited) -> None:
    await limited.limit("concurrency", "", "1")
    held = await limited.replica.begin(WHO)
    with pytest.raises(openai.RateLimitError):
        await limited.ask()
    with pytest.raises(anthropic.RateLimitError):
        await limited.tell()
    for ask in (limited.ask, limited.tell):
        began = time.monotonic()
        limited.refused.clear()
        waiting = asyncio.create_task(ask(retries=1))
        await asyncio.wait_for(limited.refused.wait(), 20)
        limited.replica.fail(held)
        assert (await waiting).http_response.status_code == 200
        assert time.monotonic() - began >= 1
        held = await limited.replica.begin(WHO)


async def test_a_window_that_is_used_up(limited: Limited) -> None:
    await limited.limit("credits", "month", "1")
    limited.replica.finish(await limited.replica.begin(WHO, NANO), NANO)
    with pytest.raises(openai.PermissionDeniedError) as caught:
        await limited.ask(retries=1)
    assert caught.value.code == "budget_limit"
    assert caught.value.type == "insufficient_quota"
    assert "it resets at 2026-07-01T00:00:00Z" in caught.value.message
    with pytest.raises(anthropic.PermissionDeniedError) as told:
        await limited.tell()
    assert told.value.body["error"]["type"] == "billing_error"  # type: ignore[index]


async def test_an_estimate_above_the_limit(limited: Limited) -> None:
    await limited.limit("credits", "day", "0.001")
    with pytest.raises(openai.APIStatusError) as caught:
        await limited.ask(max_tokens=10_000, retries=1)
    assert (caught.value.status_code, caught.value.code) == (402, "estimate_exceeds_budget")  # type: ignore[attr-defined]
    assert "retry-after" not in caught.value.response.headers
    with pytest.raises(anthropic.APIStatusError) as told:
        await limited.tell(max_tokens=10_000)
    assert told.value.status_code == 402
    # What fits is answered.
    await limited.ask(max_tokens=10)


async def test_requests_under_way_hold_the_budget(limited: Limited) -> None:
    await limited.limit("credits", "day", "1")
    held = await limited.replica.begin(WHO, NANO)
    with pytest.raises(openai.APIStatusError) as caught:
        await limited.ask()
    assert (caught.value.status_code, caught.value.code) == (402, "in_flight_budget_exhausted")  # type: ignore[attr-defined]
    assert caught.value.response.headers["retry-after"] == "1"
    limited.replica.fail(held)
    await limited.ask()


async def test_headers_name_agent_and_run(limited: Limited) -> None:
    await limited.limit("requests", "lifetime", "1", scope="run", scope_id="run_7")
    named = {"x-omnihub-agent": "agent_1", "x-omnihub-run": "run_7"}
    await limited.ask(extra_headers=named)
    with pytest.raises(openai.PermissionDeniedError):
        await limited.ask(extra_headers=named)
    await limited.ask()
    charges = limited.stack.router.journal.charges
    assert [(charge.agent_id, charge.run_id) for charge in charges] == [("agent_1", "run_7"), ("", "")]
    assert [len(charge.slice_ids) for charge in charges] == [1, 0]
    with pytest.raises(openai.BadRequestError) as caught:
        await limited.ask(extra_headers={"x-omnihub-run": "x" * 65})
    assert caught.value.param == "x-omnihub-run"


async def test_a_plan_says_which_models(limited: Limited) -> None:
    await limited.limit("requests", "lifetime", "9")
    known = limited.budgets.rules._known
    known[ORGANISATION] = type(known[ORGANISATION])("free", ("small/*",), known[ORGANISATION].by_subject)
    with pytest.raises(openai.PermissionDeniedError) as caught:
        await limited.ask()
    assert caught.value.code == "model_not_allowed"
    assert "the plan 'free'" in caught.value.message
    async with limited.openai() as client:
        assert not (await client.models.list()).data
