"""The suite's own adapters keep the contract that plugins must keep."""

from __future__ import annotations

import pytest

from services.providers.settings import ProviderSettings
from tests.support.model_server import MODEL, running_model_server
from tests.support.native_models import CLAUDE, TITAN, TITAN_EMBED, running_native_models
from tests.support.plugins import broken_clauses, serving_suite, shown_failures, verdict
from tests.support.providers import settings
from tests.support.vendors import VENDORS, Vendor

# What a run must at least have judged; a kit that skips everything would pass everything.
EVERYWHERE = {
    "ANSWER-3",
    "STREAM-2",
    "STREAM-9",
    "ERROR-4",
    "RECEIPT-2",
    "CANCEL-1",
    "PARALLEL-1",
    "LIMIT-1",
    "INPUT-3",
}


async def test_local() -> None:
    async with serving_suite() as address:
        results = await verdict(address)
    assert not broken_clauses(results), shown_failures(results)
    judged = {clause for result in results if result.state == "pass" for clause in result.clauses}
    assert judged > EVERYWHERE | {"EMBED-1", "EMBED-2", "RECEIPT-4"}


TOOLS = {"TOOL-1", "TOOL-2", "TOOL-3", "TOOL-4", "SCHEMA-1", "INPUT-4"}
RAW = {"RAW-1", "RAW-2"}
EMBEDDINGS = {"EMBED-1", "EMBED-2", "EMBED-3"}
# Ollama and Titan cannot be made to call a tool.
JUDGED = {
    "openai": TOOLS | RAW | EMBEDDINGS,
    "openai_responses": TOOLS | RAW | EMBEDDINGS,
    "groq": TOOLS | RAW | {"PREFILL-1"},
    "openrouter": TOOLS | RAW | {"PREFILL-1"},
    "huggingface": TOOLS | RAW | EMBEDDINGS,
    "self_hosted": TOOLS | RAW | EMBEDDINGS,
    "anthropic": TOOLS | RAW | {"PREFILL-1"},
    "gemini": TOOLS | EMBEDDINGS,
    "bedrock": TOOLS | EMBEDDINGS,
    "titan": EMBEDDINGS,
    "ollama": EMBEDDINGS | {"TOOL-4", "SCHEMA-1", "INPUT-4", "PREFILL-1"},
}
CHAT = ("openai-chat-answers", "openai-chat-streams")
FORMATS = {
    **dict.fromkeys(("openai", "groq", "openrouter", "huggingface", "self_hosted"), CHAT),
    "openai_responses": (*CHAT, "openai-responses-answers", "openai-responses-streams"),
    "anthropic": ("anthropic-messages-answers", "anthropic-messages-streams"),
}


@pytest.mark.parametrize("vendor", VENDORS.values(), ids=VENDORS.keys())
async def test_adapters_over_http(vendor: Vendor) -> None:
    """Under the names that the suite knows, so that what is known of the vendor is judged, too."""
    models = (TITAN_EMBED, TITAN if vendor.name == "titan" else CLAUDE)
    async with (
        running_native_models(*models) as url,
        serving_suite(**{vendor.name: vendor.settings(url)}) as address,
    ):
        results = await verdict(address, provider=vendor.name)
    assert not broken_clauses(results), shown_failures(results)
    judged = {clause for result in results if result.state == "pass" for clause in result.clauses}
    assert judged > EVERYWHERE | JUDGED[vendor.name]
    passed = {result.check for result in results if result.state == "pass"}
    formats = {check for check in passed if check.startswith("formats/")}
    assert formats == {f"formats/{name}" for name in FORMATS.get(vendor.name, ())}


async def test_a_server_of_responses_alone() -> None:
    async with running_native_models(CLAUDE) as url:
        given = VENDORS["openai_responses"].settings(url).model_copy(update={"responses": "only"})
        async with serving_suite(alone=given) as address:
            results = await verdict(address, provider="alone", model=MODEL, embedding_model="hashes")
    assert not broken_clauses(results), shown_failures(results)
    judged = {clause for result in results if result.state == "pass" for clause in result.clauses}
    assert judged > EVERYWHERE | TOOLS | RAW | EMBEDDINGS
    formats = {each.check for each in results if each.state == "pass" and each.check.startswith("formats/")}
    assert formats == {"formats/openai-responses-answers", "formats/openai-responses-streams"}


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
