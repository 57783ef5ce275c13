"""What providers keep of responses, through the public port: whose it is, how it goes on, what it costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests.support.eventually import eventually
from tests.support.fault_server import FaultServer, running_fault_server
from tests.support.response_vendor import ResponseVendor
from tests.support.suite import Suite
from tests.support.tenant import Tenant, a_tenant

pytestmark = pytest.mark.asyncio(loop_scope="module")
CONFIG = """
[auth]
registration = "open"

[providers.keeper]
adapter = "openai"
base_url = "{url}/v1"
api_key = "sk-keeper"
responses = true

[providers.plain]
adapter = "openai"
base_url = "{url}/v1"
api_key = "sk-plain"
responses = false

[billing.prices]
"keeper/*" = {{ input_per_million = "1.00", output_per_million = "2.00" }}
"plain/*" = {{ input_per_million = "1.00", output_per_million = "2.00" }}
"""
# 20 tokens in, 9 out.
COST = Decimal("0.000038")
TEXT = "Done at last."


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vendor() -> AsyncIterator[ResponseVendor]:
    yield ResponseVendor()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def suite(vendor: ResponseVendor, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Suite]:
    def configure(server: FaultServer) -> None:
        server.choose = vendor.respond

    async with running_fault_server(configure) as server:
        environment = {"OMNIHUB_ROUTER__BACKGROUND_POLL_S": "0.5"}
        suite = Suite(tmp_path_factory.mktemp("suite"), CONFIG.format(url=server.url), environment)
        try:
            await asyncio.to_thread(suite.start)
            yield suite
        finally:
            await asyncio.to_thread(suite.stop)
        assert "Traceback" not in suite.logs()


@pytest_asyncio.fixture(loop_scope="module")
async def tenant(suite: Suite) -> Tenant:
    return await asyncio.to_thread(a_tenant, suite)


def client_of(tenant: Tenant) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{tenant.url}/v1", api_key=tenant.key, max_retries=0, timeout=20)


async def test_a_kept_answer_is_read_listed_and_deleted(suite: Suite, tenant: Tenant) -> None:
    async with client_of(tenant) as client:
        made = await client.responses.create(model="keeper/m", input="hi")
        assert (await client.responses.retrieve(made.id)).output_text == TEXT
        items = await client.responses.input_items.list(made.id, order="asc")
        [item] = items.data
        assert item.content[0].text == "asc"  # type: ignore[union-attr]
        await client.responses.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(made.id)
    await asyncio.to_thread(tenant.settled, 1)


async def test_another_organisation_does_not_find_it(suite: Suite, tenant: Tenant) -> None:
    stranger = await asyncio.to_thread(a_tenant, suite)
    async with client_of(tenant) as client, client_of(stranger) as other:
        made = await client.responses.create(model="keeper/m", input="hi")
        calls: list[Any] = [
            lambda: other.responses.retrieve(made.id),
            lambda: other.responses.delete(made.id),
            lambda: other.responses.cancel(made.id),
            lambda: other.responses.input_items.list(made.id),
            lambda: other.responses.create(model="keeper/m", input="hi", previous_response_id=made.id),
        ]
        for call in calls:
            with pytest.raises(openai.NotFoundError) as caught:
                await call()
            assert made.id in caught.value.message
        assert caught.value.param == "previous_response_id"
        again = await client.responses.create(model="keeper/m", input="hi", previous_response_id=made.id)
        assert again.previous_response_id == made.id


async def test_going_on_needs_the_provider_that_keeps_it(suite: Suite, tenant: Tenant) -> None:
    async with client_of(tenant) as client:
        made = await client.responses.create(model="keeper/m", input="hi")
        with pytest.raises(openai.APIStatusError) as caught:
            await client.responses.create(model="plain/m", input="hi", previous_response_id=made.id)
        assert caught.value.status_code == 400
        assert "kept by keeper" in caught.value.message


async def test_an_answer_that_is_not_stored_is_not_bound(suite: Suite, tenant: Tenant) -> None:
    async with client_of(tenant) as client:
        made = await client.responses.create(model="keeper/m", input="hi", store=False)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(made.id)


async def test_a_background_answer_is_paid_once_when_it_is_read(
    suite: Suite, tenant: Tenant, vendor: ResponseVendor
) -> None:
    async with client_of(tenant) as client:
        made = await client.responses.create(
            model="keeper/m", input="hi", background=True, max_output_tokens=99
        )
        assert made.status == "queued"
        assert (await client.responses.retrieve(made.id)).status == "queued"
        assert (await asyncio.to_thread(tenant.usage))["total"]["requests"] == 0
        vendor.finish(made.id)
        for _ in range(3):
            answer = await client.responses.with_raw_response.retrieve(made.id)
            assert answer.parse().output_text == TEXT
        decision = await asyncio.to_thread(tenant.decision, answer.headers["x-omnihub-decision-id"])
    total = await asyncio.to_thread(tenant.settled, 1)
    assert Decimal(total["cost"]) == COST
    assert (decision["state"], Decimal(decision["cost"])) == ("complete", COST)
    assert tenant.granted - await asyncio.to_thread(tenant.balance) == COST


@pytest.mark.parametrize("store", [None, False])
async def test_a_background_answer_nobody_reads_is_paid(
    suite: Suite, tenant: Tenant, vendor: ResponseVendor, store: bool | None
) -> None:
    async with client_of(tenant) as client:
        made = await client.responses.create(model="keeper/m", input="hi", background=True, store=store)
    vendor.finish(made.id)
    total = await asyncio.to_thread(tenant.settled, 1)
    assert Decimal(total["cost"]) == COST


async def test_a_cancelled_background_answer_costs_its_input(suite: Suite, tenant: Tenant) -> None:
    async with client_of(tenant) as client:
        made = await client.responses.create(model="keeper/m", input="hi", background=True)
        assert (await client.responses.cancel(made.id)).status == "cancelled"
    total = await asyncio.to_thread(tenant.settled, 1)
    assert 0 < Decimal(total["cost"]) < COST
    assert total["output_tokens"] == 0


async def test_deleting_a_background_answer_stops_and_settles_it(suite: Suite, tenant: Tenant) -> None:
    async with client_of(tenant) as client:
        made = await client.responses.create(model="keeper/m", input="hi", background=True)
        await client.responses.delete(made.id)
    await asyncio.to_thread(tenant.settled, 1)


async def test_a_background_stream_is_taken_up_again(
    suite: Suite, tenant: Tenant, vendor: ResponseVendor
) -> None:
    async with client_of(tenant) as client:
        numbers: list[int] = []
        text, response_id = "", ""

        async def read_until_it_breaks() -> None:
            nonlocal text, response_id
            async for event in await client.responses.create(
                model="keeper/m", input="hi", background=True, stream=True
            ):
                numbers.append(event.sequence_number)
                if event.type == "response.created":
                    response_id = event.response.id
                elif event.type == "response.output_text.delta":
                    text += event.delta

        with pytest.raises(openai.APIError):
            await read_until_it_breaks()
        assert text == "Done "
        assert (await asyncio.to_thread(tenant.usage))["total"]["requests"] == 0
        again = await client.responses.retrieve(response_id, stream=True, starting_after=numbers[-1])
        async for event in again:
            numbers.append(event.sequence_number)
            if event.type == "response.output_text.delta":
                text += event.delta
            elif event.type == "response.completed":
                assert (event.response.model_extra or {})["omnihub"]["cost"] == str(COST)
        assert text == TEXT
        assert numbers == list(range(11))
    total = await asyncio.to_thread(tenant.settled, 1)
    assert Decimal(total["cost"]) == COST


async def test_bindings_and_pending_answers_survive_a_crash(
    suite: Suite, tenant: Tenant, vendor: ResponseVendor
) -> None:
    async with client_of(tenant) as client:
        made = await client.responses.create(model="keeper/m", input="hi")
        later = await client.responses.create(model="keeper/m", input="hi", background=True)
    await asyncio.to_thread(suite.kill)
    vendor.finish(later.id)
    await asyncio.to_thread(suite.start)
    async with client_of(tenant) as client:
        await client.responses.create(model="keeper/m", input="hi", previous_response_id=made.id)
    total = await asyncio.to_thread(
        eventually, lambda: tenant.usage()["total"], lambda t: t["requests"] >= 3, 30
    )
    assert (total["requests"], Decimal(total["cost"])) == (3, 3 * COST)
