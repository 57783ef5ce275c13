"""Limits, plans and places through the edge: set with REST, felt by the clients of the vendors."""

from __future__ import annotations

from typing import Any

import httpx
import openai

from tests.support.eventually import eventually
from tests.support.tenant import PROMPT, Tenant

MESSAGES: Any = [{"role": "user", "content": PROMPT}]


def ask(tenant: Tenant, key: str = "", **more: Any) -> Any:
    client = openai.OpenAI(api_key=key or tenant.key, base_url=f"{tenant.url}/v1", max_retries=0)
    with client:
        return client.chat.completions.with_raw_response.create(
            model="support-chat", messages=MESSAGES, max_tokens=64, **more
        )


def set_limit(tenant: Tenant, **terms: Any) -> Any:
    answer = tenant.request("POST", "/api/admin/limits", json={"terms": terms})
    return answer.raise_for_status().json()["limit"]


def limited(tenant: Tenant, **more: Any) -> Any:
    """Ask until the limit is known where it is asked, and return the refusal."""

    def refused() -> Any:
        try:
            ask(tenant, **more)
        except openai.APIStatusError as error:
            return error
        return None

    return eventually(refused)


def test_a_project_has_a_budget_of_requests(tenant: Tenant) -> None:
    made = tenant.request("POST", "/api/workspaces", json={"name": "research"}).raise_for_status().json()
    workspace = made["workspace"]["workspaceId"]
    body = {"name": "paper", "workspaceId": workspace}
    made = tenant.request("POST", "/api/projects", json=body).raise_for_status().json()
    project = made["project"]["projectId"]
    body = {"name": "of the project", "projectId": project}
    made = tenant.request("POST", "/api/keys", json=body).raise_for_status().json()
    assert made["key"]["workspaceId"] == workspace
    set_limit(tenant, scope="project", scopeId=project, measure="requests", window="lifetime", amount="2")
    error = limited(tenant, key=made["secret"], extra_headers={"x-omnihub-run": "run_1"})
    assert isinstance(error, openai.PermissionDeniedError)
    assert error.code == "budget_limit"
    # Other keys of the organisation are not limited.
    ask(tenant)
    groups = eventually(
        lambda: tenant.usage("project")["groups"], lambda seen: any(not group.get("group") for group in seen)
    )
    by_project = {group.get("group", ""): group["requests"] for group in groups}
    assert by_project[project] >= 2
    assert by_project[""] == 1
    runs = {group.get("group", ""): group["requests"] for group in tenant.usage("run")["groups"]}
    assert runs["run_1"] >= by_project[project]
    listed = tenant.get("/api/admin/limits")["limits"]
    assert [limit["terms"]["scopeId"] for limit in listed] == [project]
    assert int(listed[0]["spent"]) >= by_project[project]


def test_rate_limits_of_the_organisation(tenant: Tenant) -> None:
    limit = set_limit(tenant, measure="requests", window="minute", amount="2")
    error = limited(tenant)
    assert isinstance(error, openai.RateLimitError)
    assert 1 <= int(error.response.headers["retry-after"]) <= 60
    assert error.response.headers["x-ratelimit-limit-requests"] == "2"
    body = {"model": "support-chat", "messages": MESSAGES}
    native = tenant.request("POST", "/v1/chat", json=body)
    assert native.status_code == 429
    assert native.json()["error"]["reason"] == "RATE_LIMITED"
    assert native.headers["retry-after"]
    tenant.request("DELETE", f"/api/admin/limits/{limit['limitId']}").raise_for_status()
    eventually(lambda: tenant.request("POST", "/v1/chat", json=body).is_success)


def test_a_plan_is_the_platforms_to_give(tenant: Tenant, rest: httpx.Client) -> None:
    path = f"/api/admin/organisations/{tenant.organisation_id}/plan"
    assert tenant.request("POST", path, json={"plan": "free"}).status_code == 403
    assert tenant.get("/api/plan") == {}
    plan = {"name": "small", "allowedModels": ["claude-*"], "monthlyCredits": "0.5"}
    rest.post("/api/admin/plans", json={"plan": plan}).raise_for_status()
    rest.post(path, json={"plan": "small", "note": "a test"}).raise_for_status()
    assert tenant.get("/api/plan")["plan"]["name"] == "small"
    error = limited(tenant)
    assert isinstance(error, openai.PermissionDeniedError)
    assert error.code == "model_not_allowed"
    assert "the plan 'small'" in error.message
    listed = rest.get(f"{path}-assignments").raise_for_status().json()["assignments"]
    assert [(made["plan"], made["note"]) for made in listed] == [("small", "a test")]
    rest.post(path, json={"plan": ""}).raise_for_status()
    body = {"model": "support-chat", "messages": MESSAGES}
    eventually(lambda: tenant.request("POST", "/v1/chat", json=body).is_success)
