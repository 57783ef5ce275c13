"""A provider in another process, registered through the public port while everything runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from tests.support.eventually import eventually
from tests.support.plugins import running_python_sample
from tests.support.suite import Suite

VISIBLE_WITHIN_S = 5.0
BODY = {"model": "acme/parrot", "messages": [{"role": "user", "content": "Polly wants a cracker"}]}


async def test_a_plugin_is_registered_asked_and_removed(rest: httpx.Client, tmp_path: Path) -> None:
    async with running_python_sample(tmp_path) as address:
        await asyncio.to_thread(_use, rest, address)


def _use(rest: httpx.Client, address: str) -> None:
    plugin = {"name": "acme", "address": address}
    registered = rest.post("/api/admin/plugins", json={"plugin": plugin}).raise_for_status().json()
    assert registered["plugin"]["reachable"]
    _wait_for(rest, 200)
    answer = rest.post("/v1/chat/completions", json=BODY).raise_for_status().json()
    assert answer["choices"][0]["message"]["content"] == "Polly wants a cracker"
    listed = rest.get("/api/admin/plugins").raise_for_status().json()
    assert [each["plugin"]["name"] for each in listed["plugins"]] == ["acme"]
    streamed = rest.post("/v1/chat/completions", json={**BODY, "stream": True}).raise_for_status().text
    assert streamed.rstrip().endswith("data: [DONE]")
    rest.delete("/api/admin/plugins/acme").raise_for_status()
    _wait_for(rest, 404)


def _wait_for(rest: httpx.Client, status: int) -> None:
    eventually(
        lambda: rest.post("/v1/chat/completions", json=BODY),
        lambda seen: seen.status_code == status,
        VISIBLE_WITHIN_S,
    )


def test_what_is_wrong_is_said(rest: httpx.Client) -> None:
    wrong = rest.post("/api/admin/plugins", json={"plugin": {"name": "acme", "address": "nowhere"}})
    assert wrong.status_code == 400
    assert wrong.json()["error"]["details"]["fields"][0]["field"] == "plugin.address"
    away = rest.post("/api/admin/plugins", json={"plugin": {"name": "acme", "address": "127.0.0.1:9"}})
    assert away.status_code == 412
    assert rest.delete("/api/admin/plugins/nobody").status_code == 404


def test_a_credential_is_needed(suite: Suite) -> None:
    assert httpx.get(f"{suite.url}/api/admin/plugins").status_code == 401
