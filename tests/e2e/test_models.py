"""The registry through the public port: administrators' REST, and what the official clients then see."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.support.eventually import eventually
from tests.support.suite import Suite
from tests.support.tenant import PROMPT, Tenant
from tests.support.upstream import ANSWER

VISIBLE_WITHIN_S = 5.0
PATH = "/api/admin/models"
MESSAGES: Any = [{"role": "user", "content": PROMPT}]
MODEL = {
    "name": "registered",
    "aliases": ["reg", "openai/like"],
    "endpoints": [{"target": "wall/gpt-x", "region": "eu"}, {"target": "claude/claude-y"}],
    "contextLength": 9000,
    "capabilities": ["chat", "stream", "tools"],
    "strengths": {"coding": 0.5},
    "optionsSchema": {"type": "object", "properties": {"speed": {"type": "integer", "maximum": 2}}},
    "optionsDefaults": {"speed": 1},
    "source": "https://example.com/models",
    "sourceDate": "2026-11-01",
}


@pytest.fixture
def registered(rest: httpx.Client) -> Iterator[dict[str, Any]]:
    yield rest.post(PATH, json={"model": MODEL}).raise_for_status().json()["model"]
    rest.delete(f"{PATH}/registered").raise_for_status()


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    return error


def test_a_model_lives_through_rest(rest: httpx.Client, registered: dict[str, Any]) -> None:
    revision = registered["revision"]
    assert registered["managedBy"] == "registry"
    assert registered["model"]["optionsSchema"] == MODEL["optionsSchema"]
    change = {
        "model": {"contextLength": 8000, "quality": 0.5},
        "updateMask": "contextLength",
        "revision": revision,
    }
    changed = rest.patch(f"{PATH}/registered", json=change).raise_for_status().json()["model"]
    assert (changed["revision"], changed["model"]["contextLength"]) == (revision + 1, 8000)
    assert "quality" not in changed["model"]
    stale = rest.patch(f"{PATH}/registered", json=change)
    assert (stale.status_code, error_of(stale)["reason"]) == (409, "CONFLICT")
    whole = rest.put(f"{PATH}/registered", json={"model": MODEL}).raise_for_status().json()["model"]
    assert whole["model"]["contextLength"] == 9000
    disabled = rest.post(f"{PATH}/registered/disable", json={}).raise_for_status().json()["model"]
    assert disabled["problem"] == "it is disabled"
    rest.post(f"{PATH}/registered/enable", json={}).raise_for_status()
    back = {"toRevision": revision + 1}
    rolled = rest.post(f"{PATH}/registered/rollback", json=back).raise_for_status().json()["model"]
    assert rolled["model"]["contextLength"] == 8000
    history = rest.get(f"{PATH}/registered/revisions", params={"pageSize": 3}).raise_for_status().json()
    assert [each["act"] for each in history["revisions"]] == ["rollback", "enable", "disable"]
    assert history["nextPageToken"]
    listed = rest.get(PATH, params={"query": "registered"}).raise_for_status().json()["models"]
    assert [each["model"]["name"] for each in listed] == ["registered"]
    assert {each["target"]: each["configured"] for each in listed[0]["endpointStates"]} == {
        "wall/gpt-x": True,
        "claude/claude-y": True,
    }


def test_weights_and_versions(rest: httpx.Client) -> None:
    versions = [
        {"name": "voice_v1", "weight": 1, "endpoints": [{"target": "wall/gpt-x"}]},
        {"name": "avatar_pro", "endpoints": [{"target": "claude/claude-y"}]},
    ]
    rest.post(PATH, json={"model": {"name": "voice", "versions": versions}}).raise_for_status()
    try:
        weights = {"weights": {"voice_v1": 0, "avatar_pro": 5}}
        changed = rest.post(f"{PATH}/voice/weights", json=weights).raise_for_status().json()["model"]
        assert [each.get("weight", 0) for each in changed["model"]["versions"]] == [0, 5]
        seen = rest.get("/api/models/voice@avatar_pro").raise_for_status().json()["model"]
        assert seen["route"] == ["claude/claude-y"]
    finally:
        rest.delete(f"{PATH}/voice").raise_for_status()


def test_callers_use_it_by_every_name(
    rest: httpx.Client, registered: dict[str, Any], client: openai.OpenAI, suite: Suite
) -> None:
    names = {registered["model"]["name"], *MODEL["aliases"]}
    assert names <= {model.id for model in client.models.list()}
    for name in names:
        assert client.models.retrieve(name).id == name
        answer = client.chat.completions.create(model=name, messages=MESSAGES)
        assert answer.choices[0].message.content == ANSWER
    with anthropic.Anthropic(base_url=suite.url, api_key=suite.key, max_retries=0) as claude:
        assert names <= {model.id for model in claude.models.list()}
    seen = rest.get("/api/models/openai/like").raise_for_status().json()["model"]
    assert (seen["modelId"], seen["contextLength"], seen["optionsDefaults"]) == (
        "openai/like",
        9000,
        {"speed": 1},
    )


def test_a_deleted_model_is_gone(rest: httpx.Client, client: openai.OpenAI) -> None:
    rest.post(
        PATH, json={"model": {"name": "fleeting", "endpoints": [{"target": "wall/gpt-x"}]}}
    ).raise_for_status()
    rest.delete(f"{PATH}/fleeting").raise_for_status()
    eventually(
        lambda: {model.id for model in client.models.list()},
        lambda seen: "fleeting" not in seen,
        VISIBLE_WITHIN_S,
    )
    assert rest.delete(f"{PATH}/fleeting").status_code == 404


def test_an_import_beside_what_runs(suite: Suite, client: openai.OpenAI, tmp_path: Path) -> None:
    file = tmp_path / "models.json"
    file.write_text(json.dumps({"models": {"imported": {"route": ["wall/gpt-x"], "aliases": ["brought"]}}}))
    assert suite.command("models", "import", str(file)).splitlines()[-1].startswith("1 added")
    eventually(
        lambda: {model.id for model in client.models.list()},
        lambda seen: {"imported", "brought"} <= seen,
        VISIBLE_WITHIN_S,
    )
    answer = client.chat.completions.create(model="brought", messages=MESSAGES)
    assert answer.choices[0].message.content == ANSWER
    assert json.loads(suite.ask("models", "show", "brought").stdout)["name"] == "imported"


def test_what_is_wrong_is_said(rest: httpx.Client) -> None:
    wrong = {
        "name": "x",
        "endpoints": [{"target": "nobody/x"}],
        "capabilities": ["fly"],
        "strengths": {"coding": 7},
    }
    refused = rest.post(PATH, json={"model": wrong})
    assert refused.status_code == 400
    fields = [each["field"] for each in error_of(refused)["details"]["fields"]]
    assert fields == ["model.strengths.coding", "model.capabilities[0]"]
    managed = rest.patch(f"{PATH}/support-chat", json={"model": {"quality": 1}, "updateMask": "quality"})
    assert managed.status_code == 412
    assert '[models."support-chat"]' in error_of(managed)["message"]
    shown = rest.get(f"{PATH}/support-chat").raise_for_status().json()["model"]
    assert shown["managedBy"] == "file"
    assert rest.get(f"{PATH}/nobody").status_code == 404


def test_only_the_platform_may(suite: Suite, tenant: Tenant) -> None:
    assert httpx.get(f"{suite.url}{PATH}").status_code == 401
    headers = {"authorization": f"Bearer {tenant.key}"}
    for response in (
        httpx.get(f"{suite.url}{PATH}", headers=headers),
        httpx.post(f"{suite.url}{PATH}", headers=headers, json={"model": MODEL}),
        httpx.delete(f"{suite.url}{PATH}/support-chat", headers=headers),
    ):
        assert (response.status_code, error_of(response)["reason"]) == (403, "PERMISSION_DENIED")
