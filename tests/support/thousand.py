"""1,000 requests of 0.10 at the same time against 5.00, through Envoy: exactly fifty are admitted."""

from __future__ import annotations

import asyncio
import functools
from decimal import Decimal
from typing import Any

import httpx

from tests.support.crowd import REFUSALS, Crowd, crowd
from tests.support.eventually import eventually
from tests.support.fleet import TOLL
from tests.support.suite import Suite
from tests.support.tenant import Tenant, a_tenant
from tests.support.upstream import Upstream

CALLERS = 1000
LIMIT = "5.00"
ADMITTED = 50


def tenant_with(suite: Suite, what: str) -> Tenant:
    """Return an organisation whose credits, or whose key's budget, are LIMIT; known to every replica."""
    tenant = a_tenant(suite, LIMIT if what == "credits" else "100")
    if what == "budget":
        of_key = {"scope": "key", "scopeId": tenant.key_id, "measure": "credits", "window": "lifetime"}
        set_limit(tenant, {**of_key, "amount": LIMIT})
        # Set after the other and shown in headers: who knows it knows both.
        set_limit(tenant, {"measure": "requests", "window": "minute", "amount": "100000"})
        for url in suite.urls:
            eventually(functools.partial(knows_limits, url, tenant))
    return tenant


def set_limit(tenant: Tenant, terms: dict[str, str]) -> None:
    tenant.request("POST", "/api/admin/limits", json={"terms": terms}).raise_for_status()


def knows_limits(url: str, tenant: Tenant) -> bool:
    """Tell whether a replica knows the tenant's limits."""
    body = {"model": "local/echo", "messages": [{"role": "user", "content": "?"}]}
    headers = {"authorization": f"Bearer {tenant.key}"}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=10)
    return "x-ratelimit-limit-requests" in answer.headers


def charged(tenant: Tenant) -> dict[str, Any]:
    """Return what was booked for requests that cost something."""
    for group in tenant.usage("provider")["groups"]:
        if group["group"] == "toll":
            return dict(group)
    return {"requests": 0, "cost": "0"}


def admit_exactly_fifty(suite: Suite, upstream: Upstream, what: str, stream: bool, replicas: int) -> Crowd:
    """Send the crowd; assert who was admitted, what was charged, and that the books add up."""
    tenant = tenant_with(suite, what)
    urls = suite.urls[:replicas]
    seen = asyncio.run(crowd(urls, tenant, upstream, count=CALLERS, stream=stream))
    assert len(upstream.seen(seen.marker)) == ADMITTED, seen.refused
    assert len(seen.delivered) == len(set(seen.delivered)) == ADMITTED
    assert seen.refused.total() == CALLERS - ADMITTED
    assert set(seen.refused) <= REFUSALS, seen.refused
    booked = eventually(lambda: charged(tenant), lambda seen: seen["requests"] >= ADMITTED)
    assert booked["requests"] == ADMITTED
    assert Decimal(booked["cost"]) == ADMITTED * Decimal(TOLL) == Decimal(LIMIT)
    assert tenant.granted - tenant.balance() == Decimal(LIMIT)
    return seen
