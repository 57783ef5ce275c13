"""What an operator sees: health, request ids from end to end, logs."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from tests.support.eventually import eventually
from tests.support.suite import Suite
from tests.support.tenant import PROMPT, Tenant

MESSAGES: Any = [{"role": "user", "content": PROMPT}]


def lines_about(suite: Suite, request_id: str) -> list[dict[str, Any]]:
    found = []
    for line in suite.logs().splitlines():
        if request_id in line and line.startswith("{"):
            found.append(json.loads(line))
    return found


def test_health_and_readiness(suite: Suite) -> None:
    assert httpx.get(f"{suite.url}/health").status_code == 200
    assert httpx.get(f"{suite.url}/ready").json() == {"ready": True}
    assert httpx.get(f"{suite.url}/metrics").status_code == 404, "metrics are not public"
    for target in suite.processes:
        assert httpx.get(f"{suite.internal_url(target)}/metrics").status_code == 200


def test_a_request_is_found_everywhere_by_its_id(
    suite: Suite, tenant: Tenant, tenant_client: openai.OpenAI
) -> None:
    raw = tenant_client.chat.completions.with_raw_response.create(model="support-chat", messages=MESSAGES)
    request_id = raw.headers["x-omnihub-request-id"]
    split = len(suite.processes) > 1
    # The gateway, and in processes of their own the router and the providers.
    lines = eventually(lambda: lines_about(suite, request_id), lambda seen: len(seen) >= (3 if split else 1))
    entry = next(line for line in lines if line["name"] == "POST /v1/chat/completions")
    assert entry["outcome"] == "OK"
    assert entry["key_id"] == tenant.key_id
    assert entry["organisation_id"] == tenant.organisation_id
    assert entry["model_used"] == "wall/gpt-x"
    assert entry["decision_id"] == raw.headers["x-omnihub-decision-id"]
    decision = tenant.decision(entry["decision_id"])
    assert decision["request_id"] == request_id


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/completions"])
def test_a_refusal_is_found_by_its_id_too(suite: Suite, path: str) -> None:
    body = {"model": "support-chat", "messages": MESSAGES}
    answer = httpx.post(f"{suite.url}{path}", json=body, headers={"x-api-key": "omni_sk_wrong"})
    assert answer.status_code == 401
    request_id = answer.headers["x-omnihub-request-id"]
    lines = eventually(lambda: lines_about(suite, request_id))
    assert {line["outcome"] for line in lines} == {"INVALID_CREDENTIAL"}


def test_callers_do_not_choose_request_ids(suite: Suite, rest: httpx.Client) -> None:
    answer = rest.get("/v1/models", headers={"x-request-id": "mine", "x-omnihub-request-id": "mine"})
    assert answer.headers["x-omnihub-request-id"].startswith("req_")


def test_money_and_tokens_are_measured(suite: Suite, client: openai.OpenAI) -> None:
    client.chat.completions.create(model="support-chat", messages=MESSAGES)
    target = "all" if "all" in suite.processes else "router"
    metrics = eventually(
        lambda: httpx.get(f"{suite.internal_url(target)}/metrics").text,
        lambda text: 'gen_ai_provider_name="wall"' in text,
    )
    assert "gen_ai_client_token_usage" in metrics
    assert PROMPT not in metrics


def test_an_operator_rotates_the_signing_key(suite: Suite) -> None:
    here = ("--url", suite.url)
    done = suite.ask("auth", "rotate-signing-key", *here)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    # Perhaps for the second time within the five minutes: then it is the key of the first.
    assert [state for _, state, *_ in lines][:2] == ["next", "signing"]
    published = httpx.get(f"{suite.url}/.well-known/jwks.json").raise_for_status().json()
    assert {key["kid"] for key in published["keys"]} == {key_id for key_id, *_ in lines}
    assert suite.ask("auth", "signing-keys", *here).stdout == done.stdout
    refused = suite.ask("auth", "signing-keys", *here, environment={"OMNIHUB_BOOTSTRAP_API_KEY": "omni_sk_x"})
    assert (refused.returncode, refused.stderr.split(":")[0]) == (2, "INVALID_CREDENTIAL")
