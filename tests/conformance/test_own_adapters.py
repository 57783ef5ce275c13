"""The suite's own adapters keep the contract that plugins must keep."""

from __future__ import annotations

import pytest

from services.providers.settings import ProviderSettings
from tests.support.model_server import MODEL, running_model_server
from tests.support.plugins import broken_clauses, serving_suite, shown_failures, verdict
from tests.support.providers import settings

# What a run must at least have judged; a kit that skips everything would pass everything.
EVERYWHERE = {"ANSWER-3", "STREAM-2", "STREAM-9", "ERROR-4", "RECEIPT-2", "CANCEL-1", "PARALLEL-1", "LIMIT-1"}


async def test_local() -> None:
    async with serving_suite() as address:
        results = await verdict(address)
    assert not broken_clauses(results), shown_failures(results)
    judged = {clause for result in results if result.state == "pass" for clause in result.clauses}
    assert judged > EVERYWHERE | {"EMBED-1", "EMBED-2", "RECEIPT-4"}


@pytest.mark.parametrize("adapter", ["openai", "anthropic"])
async def test_adapters_over_http(adapter: str) -> None:
    async with (
        running_model_server() as url,
        serving_suite(wall=settings(adapter, url)) as address,
    ):
        results = await verdict(address, provider="wall")
    assert not broken_clauses(results), shown_failures(results)
    judged = {clause for result in results if result.state == "pass" for clause in result.clauses}
    assert judged > EVERYWHERE | {"TOOL-1", "TOOL-2", "TOOL-3", "RAW-1", "RAW-2"}
    if adapter == "openai":
        assert judged > {"EMBED-1", "EMBED-2", "EMBED-3"}


async def test_a_plugin_behind_the_plugin_adapter() -> None:
    async with (
        running_model_server() as url,
        serving_suite(wall=settings("openai", url)) as behind,
        serving_suite(acme=_plugin(behind)) as address,
    ):
        results = await verdict(address, provider="acme", model=MODEL, embedding_model="hashes")
    assert not broken_clauses(results), shown_failures(results)
    judged = {clause for result in results if result.state == "pass" for clause in result.clauses}
    assert judged > EVERYWHERE | {"TOOL-2", "RAW-1", "RAW-2", "EMBED-1"}


def _plugin(address: str) -> ProviderSettings:
    return ProviderSettings(adapter="plugin", address=address, remote_provider="wall")
