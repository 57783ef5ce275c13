"""An organisation of its own for a test, so that its money can be counted to the last nano-credit."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import uuid4

import httpx

from tests.support.eventually import eventually
from tests.support.suite import Suite

PASSWORD = "correct horse battery"
PROMPT = "A prompt that nobody should read in a log"
SCOPES = ["chat", "usage", "keys", "admin"]


@dataclass
class Tenant:
    """A registered organisation with a key."""

    url: str
    organisation_id: str
    key_id: str
    key: str
    granted: Decimal

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Send one REST request with the key."""
        headers = {"authorization": f"Bearer {self.key}", **more.pop("headers", {})}
        return httpx.request(method, f"{self.url}{path}", headers=headers, timeout=20, **more)

    def get(self, path: str) -> Any:
        """Return the JSON of a path. Raises httpx.HTTPStatusError."""
        return self.request("GET", path).raise_for_status().json()

    def decision(self, decision_id: str) -> Any:
        """Return the record of a request."""
        return eventually(
            lambda: self.request("GET", f"/v1/router/decisions/{decision_id}"), lambda seen: seen.is_success
        ).json()["decision"]

    def usage(self, group_by: str = "") -> Any:
        """Return GET /v1/usage."""
        return self.get(f"/v1/usage?group_by={group_by}" if group_by else "/v1/usage")

    def settled(self, requests: int) -> Any:
        """Return the total usage once so many requests have been booked; more of them are an error."""
        total = eventually(lambda: self.usage()["total"], lambda seen: seen["requests"] >= requests)
        assert total["requests"] == requests
        return total

    def balance(self) -> Decimal:
        """Return what is booked."""
        return Decimal(self.get("/api/balance")["balance"])


def register(suite: Suite, **more: Any) -> tuple[str, str]:
    """Register somebody new and return their email and access token."""
    email = f"{uuid4().hex}@example.com"
    body = {"email": email, "password": PASSWORD, **more}
    answer = httpx.post(f"{suite.url}/api/auth/register", json=body, timeout=20).raise_for_status()
    return email, answer.json()["accessToken"]


def a_tenant(suite: Suite, credits_given: str = "10") -> Tenant:
    """Register an organisation, make a key, grant credits with the first key."""
    _, token = register(suite)
    person = {"authorization": f"Bearer {token}"}
    me = httpx.get(f"{suite.url}/api/auth/me", headers=person, timeout=20).raise_for_status().json()
    organisation_id = me["organisation"]["organisationId"]
    made = httpx.post(
        f"{suite.url}/api/keys", headers=person, json={"name": "tests", "scopes": SCOPES}, timeout=20
    ).raise_for_status()
    if Decimal(credits_given):
        path = f"{suite.url}/api/admin/organisations/{organisation_id}/credits"
        grant = {"amount": credits_given, "idempotencyKey": uuid4().hex}
        platform = {"authorization": f"Bearer {suite.key}"}

        def granted() -> httpx.Response:
            return httpx.post(path, headers=platform, json=grant, timeout=20)

        # Billing hears of a new organisation through the change feed.
        eventually(granted, lambda seen: seen.status_code != 404).raise_for_status()
    secret = made.json()["secret"]
    return Tenant(suite.url, organisation_id, made.json()["key"]["keyId"], secret, Decimal(credits_given))
