"""REST and SSE as curl would speak it: chats, people, keys, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from uuid import uuid4

import httpx
import jwt
import pytest

from tests.support.deployment import WALL_COST
from tests.support.eventually import eventually
from tests.support.suite import Suite
from tests.support.tenant import PASSWORD, PROMPT, Tenant, register
from tests.support.upstream import ANSWER, Upstream

BODY: Any = {"model": "support-chat", "messages": [{"role": "user", "content": PROMPT}]}
REVOKED_WITHIN_S = 5.0


def events_of(text: str) -> list[dict[str, Any]]:
    return [
        json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")
    ]


def test_a_chat(rest: httpx.Client) -> None:
    answer = rest.post("/v1/chat", json=BODY).raise_for_status().json()
    assert answer["output"] == ANSWER
    assert answer["model_used"] == "wall/gpt-x"
    assert Decimal(answer["cost"]) == WALL_COST
    assert answer["latency_ms"] >= 0
    assert "savings_estimate" in answer


@pytest.mark.parametrize("extra", [{}, {"priority": "cheap"}, {"latency_pref": "fast"}, {"max_cost": "0.5"}])
def test_a_chat_that_leaves_the_choice_to_the_router(rest: httpx.Client, extra: dict[str, Any]) -> None:
    body = {**BODY, "model": "auto", "mode": "flash", "temperature": 0.5, "max_tokens": 20, **extra}
    answer = rest.post("/v1/chat", json=body).raise_for_status().json()
    assert answer["output"]
    assert answer["model_used"]


def test_a_chat_as_events(rest: httpx.Client) -> None:
    answer = rest.post("/v1/chat:stream", json=BODY).raise_for_status()
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_of(answer.text)
    assert "start" in events[0]
    assert "".join(event.get("part_delta", {}).get("text", "") for event in events) == ANSWER
    assert events[-1]["end"]["outcome"]["state"] == "complete"


def test_events_that_break_end_with_an_error(rest: httpx.Client) -> None:
    answer = rest.post("/v1/chat:stream", json={**BODY, "model": "wall/cut"})
    events = events_of(answer.text)
    assert "end" not in events[-1]
    assert any(event.get("error", {}).get("reason") == "STREAM_TRUNCATED" for event in events)


def test_leaving_events_reaches_the_provider(tenant: Tenant, upstream: Upstream) -> None:
    marker = uuid4().hex
    body = {"model": "wall/endless", "messages": [{"role": "user", "content": marker}]}
    headers = {"x-api-key": tenant.key}
    with httpx.stream("POST", f"{tenant.url}/v1/chat:stream", json=body, headers=headers) as answer:
        lines = answer.iter_lines()
        while "part_delta" not in next(lines):
            pass
    (seen,) = upstream.seen(marker)
    assert upstream.wait_for(lambda: seen.state == "left")
    assert tenant.settled(1)["output_tokens"] > 0


class TestRefused:
    def error(self, answer: httpx.Response) -> dict[str, Any]:
        error: dict[str, Any] = answer.json()["error"]
        assert error["message"]
        assert error["request_id"] == answer.headers["x-omnihub-request-id"]
        assert error["code"] == answer.status_code
        return error

    @pytest.mark.parametrize("path", ["/nothing", "/api/nothing", "/v1/nothing", "/v1/chat/nothing"])
    def test_unknown_paths(self, rest: httpx.Client, path: str) -> None:
        answer = rest.get(path)
        assert answer.status_code == 404
        assert answer.json()["error"]["message"]

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("GET", "/v1/chat", "POST"),
            ("DELETE", "/v1/usage", "GET"),
            ("GET", "/v1/chat/completions", "POST"),
            ("PUT", "/v1/models", "GET"),
            ("PUT", "/api/keys", "GET"),
        ],
    )
    def test_wrong_methods_say_which_are_right(
        self, rest: httpx.Client, method: str, path: str, allowed: str
    ) -> None:
        answer = rest.request(method, path)
        assert answer.status_code == 405
        assert allowed in answer.headers["allow"]

    @pytest.mark.parametrize(
        ("body", "word"),
        [
            ('{"messages": [', ""),
            ('{"messages": "hello"}', "messages"),
            ('{"messages": [{"role": "wizard", "content": "x"}]}', "role"),
            ('{"messages": [{"role": "user", "content": "x"}], "temperature": 7}', "temperature"),
            ('{"messages": [{"role": "user", "content": "x"}], "priority": "dear"}', "priority"),
            ("{}", "messages"),
        ],
    )
    def test_bad_bodies_name_the_field(self, rest: httpx.Client, body: str, word: str) -> None:
        answer = rest.post("/v1/chat", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400
        assert word in self.error(answer)["message"]

    def test_an_oversized_body(self, rest: httpx.Client) -> None:
        answer = rest.post("/v1/chat", json={**BODY, "user": "x" * 600_000})
        assert answer.status_code == 413
        assert self.error(answer)["reason"] == "BODY_TOO_LARGE"

    @pytest.mark.parametrize(
        ("path", "key"), [("/v1/chat", "own"), ("/api/keys", "omni_sk_wrong"), ("/api/auth/login", "")]
    )
    async def test_who_still_sends_gets_the_refusal(self, suite: Suite, path: str, key: str) -> None:
        """Asynchronous clients lose an answer that comes while they send: what is refused is read first."""
        headers = {"x-api-key": suite.key if key == "own" else key} if key else {}
        async with httpx.AsyncClient(base_url=suite.url, headers=headers, timeout=20) as client:
            answer = await client.post(path, json={"name": "x" * 20_000_000})
            assert answer.status_code == 413
            assert self.error(answer)["reason"] == "BODY_TOO_LARGE"
            assert (await client.post("/-/oversized", json={})).status_code == 404

    def test_keys(self, suite: Suite) -> None:
        missing = httpx.post(f"{suite.url}/v1/chat", json=BODY)
        assert (missing.status_code, self.error(missing)["reason"]) == (401, "MISSING_CREDENTIAL")
        wrong = httpx.post(f"{suite.url}/v1/chat", json=BODY, headers={"x-api-key": "omni_sk_wrong"})
        assert (wrong.status_code, self.error(wrong)["reason"]) == (401, "INVALID_CREDENTIAL")

    def test_nobody_grants_credits_to_themselves(self, tenant: Tenant) -> None:
        path = f"/api/admin/organisations/{tenant.organisation_id}/credits"
        answer = tenant.request("POST", path, json={"amount": 5, "idempotencyKey": "mine"})
        assert (answer.status_code, self.error(answer)["reason"]) == (403, "PERMISSION_DENIED")

    def test_nobody_reads_the_decisions_of_others(self, tenant: Tenant, rest: httpx.Client) -> None:
        decision_id = rest.post("/v1/chat", json=BODY).json()["outcome"]["decision_id"]
        answer = tenant.request("GET", f"/v1/router/decisions/{decision_id}")
        assert (answer.status_code, self.error(answer)["reason"]) == (404, "NOT_FOUND")


class TestPeople:
    def test_register_login_and_me(self, suite: Suite) -> None:
        email, token = register(suite, displayName="Somebody", organisationName="Somewhere")
        me = httpx.get(f"{suite.url}/api/auth/me", headers={"authorization": f"Bearer {token}"}).json()
        assert me["user"]["email"] == email
        assert me["organisation"]["name"] == "Somewhere"
        assert me["identity"]["role"] == "owner"
        login = {"email": email, "password": PASSWORD}
        again = httpx.post(f"{suite.url}/api/auth/login", json=login).raise_for_status().json()
        assert again["tokenType"] == "Bearer"
        wrong = httpx.post(f"{suite.url}/api/auth/login", json={**login, "password": "not the password"})
        assert (wrong.status_code, wrong.json()["error"]["reason"]) == (401, "INVALID_CREDENTIAL")
        twice = httpx.post(f"{suite.url}/api/auth/register", json=login)
        assert (twice.status_code, twice.json()["error"]["reason"]) == (409, "ALREADY_EXISTS")

    def test_an_invitation_leads_into_the_organisation(self, suite: Suite, tenant: Tenant) -> None:
        invited = tenant.request("POST", "/api/auth/invitations", json={"role": "member"}).raise_for_status()
        _, token = register(suite, invitation=invited.json()["invitation"])
        me = httpx.get(f"{suite.url}/api/auth/me", headers={"authorization": f"Bearer {token}"}).json()
        assert me["organisation"]["organisationId"] == tenant.organisation_id
        assert me["identity"]["role"] == "member"
        body = {"email": f"{uuid4().hex}@example.com", "password": PASSWORD, **invited.json()}
        body.pop("invitationId")
        used = httpx.post(f"{suite.url}/api/auth/register", json=body)
        assert (used.status_code, used.json()["error"]["reason"]) == (403, "REGISTRATION_CLOSED")

    def test_a_person_joins_a_second_organisation(self, suite: Suite, tenant: Tenant) -> None:
        _, token = register(suite)
        invited = tenant.request("POST", "/api/auth/invitations", json={"role": "viewer"}).raise_for_status()
        url, body = f"{suite.url}/api/auth/invitations/accept", {"invitation": invited.json()["invitation"]}
        headers = {"authorization": f"Bearer {token}"}
        joined = httpx.post(url, json=body, headers=headers).raise_for_status().json()
        assert (joined["organisation"]["organisationId"], joined["role"]) == (
            tenant.organisation_id,
            "viewer",
        )
        there = {"authorization": f"Bearer {joined['accessToken']}"}
        me = httpx.get(f"{suite.url}/api/auth/me", headers=there).json()
        assert me["identity"]["organisationId"] == tenant.organisation_id
        again = httpx.post(url, json=body, headers=headers)
        assert (again.status_code, again.json()["error"]["reason"]) == (403, "REGISTRATION_CLOSED")
        other = tenant.request("POST", "/api/auth/invitations", json={"role": "viewer"}).raise_for_status()
        twice = httpx.post(url, json={"invitation": other.json()["invitation"]}, headers=headers)
        assert (twice.status_code, twice.json()["error"]["reason"]) == (409, "ALREADY_EXISTS")

    def test_the_published_keys_verify_access_tokens(self, suite: Suite) -> None:
        _, token = register(suite)
        published = httpx.get(f"{suite.url}/.well-known/jwks.json").raise_for_status().json()
        keys = {key["kid"]: jwt.PyJWK(key) for key in published["keys"]}
        key = keys[jwt.get_unverified_header(token)["kid"]]
        claims = jwt.decode(token, key, algorithms=["EdDSA"], audience="omnihub", issuer="omnihub")
        assert claims["sub"].startswith("usr_")


class TestKeys:
    # One path for each process that looks at credentials itself.
    LOOKS: tuple[Callable[[httpx.Client], httpx.Response], ...] = (
        lambda client: client.get("/v1/models"),
        lambda client: client.post("/v1/chat", json=BODY),
        lambda client: client.get("/v1/usage"),
        lambda client: client.get("/api/auth/me"),
    )

    def make(self, tenant: Tenant, **fields: Any) -> dict[str, Any]:
        body = {"name": "made", "scopes": ["chat", "usage"], **fields}
        made: dict[str, Any] = tenant.request("POST", "/api/keys", json=body).raise_for_status().json()
        return made

    def client(self, suite: Suite, secret: str) -> httpx.Client:
        return httpx.Client(base_url=suite.url, headers={"x-api-key": secret}, timeout=20)

    def statuses(self, suite: Suite, secret: str) -> list[int]:
        with self.client(suite, secret) as client:
            return [look(client).status_code for look in self.LOOKS]

    def test_create_and_list(self, suite: Suite, tenant: Tenant) -> None:
        made = self.make(tenant, name="ci", allowedModels=["support-chat"], expiresInS=3600)
        assert made["secret"].startswith("omni_sk_")
        assert self.statuses(suite, made["secret"]) == [200, 200, 200, 200]
        listed = {key["keyId"]: key for key in tenant.get("/api/keys")["keys"]}
        key = listed[made["key"]["keyId"]]
        assert key["hint"] == made["secret"][-4:]
        assert key["allowedModels"] == ["support-chat"]
        assert "secret" not in json.dumps(listed)

    def test_a_repeat_makes_no_second_key(self, tenant: Tenant) -> None:
        once = self.make(tenant, idempotencyKey="once")
        again = self.make(tenant, idempotencyKey="once")
        assert again["key"]["keyId"] == once["key"]["keyId"]
        assert not again.get("secret")

    def test_rotate_with_overlap(self, suite: Suite, tenant: Tenant) -> None:
        made = self.make(tenant)
        path = f"/api/keys/{made['key']['keyId']}/rotate"
        rotated = tenant.request("POST", path, json={"overlapS": 3600}).raise_for_status().json()
        assert rotated["secret"] != made["secret"]
        assert self.statuses(suite, rotated["secret"]) == [200, 200, 200, 200]
        assert self.statuses(suite, made["secret"]) == [200, 200, 200, 200]

    @pytest.mark.parametrize("how", ["revoked", "rotated"])
    def test_an_old_secret_is_refused_everywhere_within_five_seconds(
        self, suite: Suite, tenant: Tenant, how: str
    ) -> None:
        made = self.make(tenant)
        assert self.statuses(suite, made["secret"]) == [200, 200, 200, 200]
        path = f"/api/keys/{made['key']['keyId']}"
        if how == "revoked":
            tenant.request("DELETE", path).raise_for_status()
        else:
            tenant.request("POST", f"{path}/rotate", json={}).raise_for_status()
        eventually(
            lambda: self.statuses(suite, made["secret"]),
            lambda seen: seen == [401, 401, 401, 401],
            REVOKED_WITHIN_S,
        )
