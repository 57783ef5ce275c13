"""What callers of foreign formats wish of the routing: headers and the `omnihub` object, over real HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from services.providers.settings import ProviderSettings
from services.router.settings import RouteSettings
from tests.support.chat_stack import KEY, Stack, running_stack
from tests.support.upstream import Upstream, running_upstream

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHAT, DEBUG = "/v1/chat/completions", "/v1/router/debug"
BODY: dict[str, Any] = {"model": "auto", "messages": [{"role": "user", "content": "Good evening"}]}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    with running_upstream() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    providers = {
        "wall": ProviderSettings.model_validate(
            {"adapter": "openai", "base_url": f"{upstream.url}/v1", "api_key": "sk"}
        ),
        "claude": ProviderSettings.model_validate(
            {"adapter": "anthropic", "base_url": upstream.url, "api_key": "sk"}
        ),
    }
    routes = {
        "small": RouteSettings(route=["wall/gpt-small"], strengths={"chat": 0.2}, capabilities=["tools"]),
        "large": RouteSettings(
            route=["wall/gpt-large"],
            strengths={"chat": 0.9},
            capabilities=["tools", "vision", "reasoning"],
            regions=["eu"],
        ),
    }
    async with running_stack(tmp_path_factory.mktemp("wishes"), providers, routes) as stack:
        for target, factor in (("wall/gpt-small", 1), ("wall/gpt-large", 50)):
            stack.router.billing.price(target, 1_000_000 * factor, 2_000_000 * factor)
        yield stack


async def asked(running: Stack, body: dict[str, Any], **headers: str) -> httpx.Response:
    named = {f"x-omnihub-{name.replace('_', '-')}": value for name, value in headers.items()}
    return await running.http.post(CHAT, json=body, headers=named)


@pytest.mark.parametrize(
    ("headers", "model"),
    [
        ({"priority": "cheap"}, "wall/gpt-small"),
        ({"priority": "best"}, "wall/gpt-large"),
        ({"priority": "best", "max_cost": "0.05"}, "wall/gpt-small"),
        ({"priority": "cheap", "require": "vision, tools"}, "wall/gpt-large"),
        ({"priority": "cheap", "region": "eu"}, "wall/gpt-large"),
        ({"mode": "ultra-think"}, "wall/gpt-large"),
    ],
)
@pytest.mark.parametrize("way", ["headers", "body"])
async def test_wishes_are_heard_and_stay_here(
    running: Stack, upstream: Upstream, headers: dict[str, str], model: str, way: str
) -> None:
    marker = f"Hello, how are you today, {way} {' '.join(headers.values())}?"
    body = {**BODY, "messages": [{"role": "user", "content": marker}]}
    if way == "headers":
        answer = await asked(running, body, **headers)
    else:
        answer = await asked(running, {**body, "omnihub": headers})
    assert answer.status_code == 200
    assert answer.headers["x-omnihub-model"] == model
    (seen,) = upstream.seen(marker)
    assert "omnihub" not in seen.document
    assert not any(name.lower().startswith("x-omnihub") for name in seen.headers)


async def test_an_sdk_sends_wishes_as_extra_body(running: Stack) -> None:
    async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=KEY) as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="auto",
            messages=[{"role": "user", "content": "Hello, how are you?"}],
            extra_body={"omnihub": {"priority": "best"}},
        )
    assert raw.headers["x-omnihub-model"] == "wall/gpt-large"


async def test_what_is_sent_implies_what_is_needed(running: Stack) -> None:
    content = [{"type": "text", "text": "What is this?"}, IMAGE]
    body = {"model": "auto", "messages": [{"role": "user", "content": content}]}
    answer = await asked(running, body, priority="cheap")
    assert answer.headers["x-omnihub-model"] == "wall/gpt-large"
    # The words about an image are no image.
    body["messages"] = [{"role": "user", "content": json.dumps(IMAGE)}]
    answer = await asked(running, body, priority="cheap")
    assert answer.headers["x-omnihub-model"] == "wall/gpt-small"


@pytest.mark.parametrize(
    ("headers", "wishes", "field", "text"),
    [
        ({"priority": "cheep"}, None, "x-omnihub-priority", "none of cheap, balanced, best"),
        ({"latency_pref": "slow"}, None, "x-omnihub-latency-pref", "none of fast, normal"),
        ({"mode": "turbo"}, None, "x-omnihub-mode", "none of flash"),
        ({"max_cost": "much"}, None, "x-omnihub-max-cost", "expected credits"),
        ({"max_cost": "nan"}, None, "x-omnihub-max-cost", "expected credits"),
        ({"require": "magic"}, None, "x-omnihub-require", "none of tools"),
        ({}, {"priority": "cheep"}, "omnihub.priority", "none of cheap"),
        ({}, {"prioritee": "cheap"}, "omnihub", "unknown field"),
        ({}, ["cheap"], "omnihub", "expected"),
        (
            {"priority": "best"},
            {"priority": "cheap"},
            "x-omnihub-priority",
            "something else than omnihub.priority",
        ),
        ({"mode": "flash", "priority": "best"}, None, "mode", "say the opposite"),
    ],
)
async def test_what_is_wrong_is_named(
    running: Stack, headers: dict[str, str], wishes: Any, field: str, text: str
) -> None:
    body = BODY if wishes is None else {**BODY, "omnihub": wishes}
    answer = await asked(running, body, **headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, field)
    assert text in error["message"]


async def test_impossible_wishes_name_the_constraint_of_the_last_one(running: Stack) -> None:
    answer = await asked(running, BODY, require="vision", max_cost="0.000001")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "no_candidate")
    assert "wall/gpt-large: may cost more than max_cost" in error["message"]
    assert "1 by capabilities" in error["message"]


async def test_debug_takes_both_shapes_and_asks_nobody(running: Stack, upstream: Upstream) -> None:
    before = len(upstream.requests)
    typed = {**BODY, "priority": "cheap"}
    answer = await running.http.post(DEBUG, json=typed)
    document = answer.json()
    assert answer.status_code == 200
    assert document["chain"] == ["wall/gpt-small", "wall/gpt-large"]
    first = document["candidates"][0]
    assert first["score"] == pytest.approx(sum(first["parts"].values()))
    assert (document["inputs"]["task"], document["inputs"]["weights"]["cost"]) == ("chat", 0.7)
    assert document["tasks"][0]["task"] == "chat"
    foreign = {
        "model": "auto",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, IMAGE]}],
        "stream": True,
        "omnihub": {"max_cost": 0.0001},
    }
    document = (await running.http.post(DEBUG, json=foreign, headers={"x-omnihub-priority": "best"})).json()
    assert document["chain"] == []
    assert document["refusal"]["reason"] == "NO_CANDIDATE"
    assert document["refusal"]["constraint"] == "max_cost"
    assert [each["constraint"] for each in document["candidates"]] == ["capabilities", "max_cost"]
    assert document["inputs"]["feature"] == "stream"
    assert len(upstream.requests) == before


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "MALFORMED_BODY"),
        (b'{"messages": []}', "INVALID_ARGUMENT"),
        (b'{"model": "nobody/x", "messages": [{"role": "user", "content": "hi"}]}', "MODEL_NOT_FOUND"),
        (b'{"messages": [{"role": "user", "content": "hi"}], "priority": "cheep"}', "INVALID_ARGUMENT"),
    ],
)
async def test_debug_answers_errors_in_our_own_shape(running: Stack, body: bytes, reason: str) -> None:
    answer = await running.http.post(DEBUG, content=body)
    error = answer.json()["error"]
    assert (error["reason"], error["code"]) == (reason, answer.status_code)


async def test_a_failed_request_names_its_decision(running: Stack) -> None:
    running.router.billing.price("wall/fail-400", 1, 1)
    answer = await asked(running, {**BODY, "model": "wall/fail-400"})
    assert answer.status_code == 400
    await asyncio.wait_for(running.router.settle(), 60)
    assert running.router.journal.decisions[-1].state == "upstream_error"
    assert answer.headers["x-omnihub-decision-id"] == running.router.journal.decisions[-1].decision_id
