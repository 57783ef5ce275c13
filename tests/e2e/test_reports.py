"""Prices, margins, usage events, export, reports and checks, as callers and operators reach them."""

from __future__ import annotations

import csv
import io
import json
from decimal import Decimal
from typing import Any

import httpx
import pytest

from tests.support.deployment import CLAUDE_COST, WALL_COST
from tests.support.eventually import eventually
from tests.support.suite import Suite
from tests.support.tenant import Tenant, a_tenant

FORMULA = "=HYPERLINK(1)"


def ask(tenant: Tenant, model: str = "support-chat", **more: Any) -> Decimal:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 64, **more}
    answer = tenant.request("POST", "/v1/chat", json=body).raise_for_status().json()
    return Decimal(answer["outcome"]["cost"])


def error_of(answer: httpx.Response, status: int) -> Any:
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"code", "reason", "message", "details", "request_id"}
    return answer.json()["error"]


def test_usage_can_be_read_event_by_event_and_exported(suite: Suite, tenant: Tenant) -> None:
    paid = [ask(tenant), ask(tenant, "claude-chat"), ask(tenant, agent_id=FORMULA)]
    assert paid == [WALL_COST, CLAUDE_COST, WALL_COST]
    tenant.settled(3)
    page = tenant.get("/api/usage/events?pageSize=2")
    rest = tenant.get(f"/api/usage/events?pageSize=2&pageToken={page['nextPageToken']}")
    events = page["events"] + rest["events"]
    assert [Decimal(event["amount"]) for event in events] == paid
    assert {event["organisationId"] for event in events} == {tenant.organisation_id}
    assert (events[0]["state"], events[0]["costSource"], events[0]["cost"]) == ("complete", "price", "")

    exported = tenant.request("GET", "/api/usage/export")
    assert exported.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(exported.text)))
    assert [row["event_id"] for row in rows] == [event["eventId"] for event in events]
    assert [row["agent_id"] for row in rows] == ["", "", f"'{FORMULA}"]
    assert [Decimal(row["amount"]) for row in rows] == paid
    lines = tenant.request("GET", "/api/usage/export?format=jsonl&from=2020-01-01").text.splitlines()
    assert [json.loads(line) for line in lines] == events

    report = tenant.get("/api/reports/usage")
    assert Decimal(report["total"]["cost"]) == sum(paid)
    assert {group["group"]: group["requests"] for group in report["byModel"]} == {
        "wall/gpt-x": 2,
        "claude/claude-y": 1,
    }
    assert [Decimal(group["cost"]) for group in report["byKey"]] == [sum(paid)]


def test_an_export_says_what_is_wrong_with_it(suite: Suite, tenant: Tenant) -> None:
    for query, status, reason, word in (
        ("format=xls", 400, "INVALID_ARGUMENT", "csv, jsonl"),
        ("from=yesterday", 400, "INVALID_ARGUMENT", "RFC 3339"),
        ("color=red", 400, "INVALID_ARGUMENT", "is no parameter"),
        ("from=2026-01-01&from=2026-01-02", 400, "INVALID_ARGUMENT", "more than once"),
        ("organisation_id=org_other", 403, "PERMISSION_DENIED", "platform"),
    ):
        error = error_of(tenant.request("GET", f"/api/usage/export?{query}"), status)
        assert error["reason"] == reason
        assert word in error["message"]
    anonymous = httpx.get(f"{suite.url}/api/usage/export", timeout=20)
    assert error_of(anonymous, 401)["reason"] == "MISSING_CREDENTIAL"
    assert error_of(tenant.request("POST", "/api/usage/export"), 405)["reason"] == "METHOD_NOT_ALLOWED"


def test_a_margin_is_charged_shown_and_can_be_checked(suite: Suite, rest: httpx.Client) -> None:
    tenant = a_tenant(suite)
    assert ask(tenant) == WALL_COST
    set_to = rest.post(
        "/api/admin/margins",
        json={"organisationId": tenant.organisation_id, "basisPoints": 2500, "note": "agreed in May"},
    ).raise_for_status()
    assert set_to.json()["margin"]["inForce"] is True
    # Visible everywhere within five seconds.
    costs = [WALL_COST]

    def charged() -> Decimal:
        costs.append(ask(tenant))
        return costs[-1]

    eventually(charged, lambda cost: cost == WALL_COST * Decimal("1.25"))
    assert set(costs) == {WALL_COST, WALL_COST * Decimal("1.25")}
    total = tenant.settled(len(costs))
    assert Decimal(total["cost"]) == sum(costs)
    assert tenant.balance() == tenant.granted - sum(costs)

    platform = rest.get("/api/admin/reports/platform").raise_for_status().json()
    (own,) = (group for group in platform["byOrganisation"] if group["group"] == tenant.organisation_id)
    assert Decimal(own["revenue"]) == sum(costs)
    assert Decimal(own["cost"]) == WALL_COST * len(costs)
    assert Decimal(own["margin"]) == sum(costs) - WALL_COST * len(costs)
    revenue = sum(Decimal(group["revenue"]) for group in platform["byOrganisation"])
    assert revenue == Decimal(platform["total"]["revenue"])

    body = {"organisationId": tenant.organisation_id}
    rerated = rest.post("/api/admin/reratings", json=body).raise_for_status().json()
    assert (rerated["checked"], rerated["reproduced"]) == (len(costs), len(costs))
    whole = rest.get(
        "/api/usage/export", params={"organisation_id": tenant.organisation_id, "format": "jsonl"}
    )
    event = json.loads(whole.text.splitlines()[-1])
    assert (Decimal(event["amount"]), Decimal(event["cost"])) == (costs[-1], WALL_COST)
    models = {model["modelId"]: model for model in tenant.get("/api/models")["models"]}
    assert Decimal(models["support-chat"]["inputPricePerMillion"]) == Decimal("1.25")


def test_prices_are_managed_by_the_platform_alone(suite: Suite, tenant: Tenant, rest: httpx.Client) -> None:
    body = {"provider": "acme", "model": "m", "price": {"perRequest": "0.25"}}
    for method, path in (
        ("POST", "/api/admin/prices"),
        ("POST", "/api/admin/margins"),
        ("GET", "/api/admin/prices"),
        ("GET", "/api/admin/prices/current"),
        ("GET", "/api/admin/margins"),
        ("GET", "/api/admin/reports/platform"),
        ("POST", "/api/admin/reratings"),
        ("POST", "/api/admin/reconciliations"),
        ("GET", "/api/admin/differences"),
    ):
        more = {"json": {}} if method == "POST" else {}
        assert error_of(tenant.request(method, path, **more), 403)["reason"] == "PERMISSION_DENIED"
    made = rest.post("/api/admin/prices", json=body).raise_for_status().json()["price"]
    assert (made["price"]["perRequest"], made["source"]) == ("0.25", "admin")
    current = rest.get("/api/admin/prices/current?provider=acme&model=m").raise_for_status().json()["price"]
    assert current["version"] == made["version"]
    listed = rest.get("/api/admin/prices?provider=acme").raise_for_status().json()["prices"]
    assert listed[0]["version"] == made["version"]
    managed = rest.get("/api/admin/prices?provider=wall").raise_for_status().json()["prices"]
    assert [price["managedByFile"] for price in managed] == [True]
    refused = rest.post("/api/admin/prices", json={**body, "provider": "wall", "model": "*"})
    assert error_of(refused, 412)["reason"] == "MANAGED_BY_FILE"
    unknown = rest.get("/api/admin/prices/current?provider=nobody&model=nothing")
    assert error_of(unknown, 422)["reason"] == "PRICE_UNKNOWN"
    wrong = rest.post("/api/admin/prices", json={**body, "price": {"perRequest": "-1"}})
    assert "price.per_request" in error_of(wrong, 400)["message"]


def test_an_operator_exports_rates_again_and_reconciles(suite: Suite, tenant: Tenant, tmp_path: Any) -> None:
    ask(tenant)
    tenant.settled(1)
    url = ("--url", suite.url)
    file = tmp_path / "usage.csv"
    done = suite.run("usage", "export", *url, "--organisation", tenant.organisation_id, "--output", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    (row,) = csv.DictReader(io.StringIO(file.read_text()))
    assert (row["organisation_id"], Decimal(row["cost"])) == (tenant.organisation_id, WALL_COST)

    done = suite.ask("billing", "rerate", *url, "--organisation", tenant.organisation_id)
    assert (done.returncode, done.stdout) == (0, "1 events rated again, 1 reproduced\n")

    bill = tmp_path / "bill.csv"
    bill.write_text(f"model,day,amount\nnever-asked,{row['at'][:10]},12.5\n")
    done = suite.ask("billing", "reconcile", str(bill), "--provider", "wall", *url)
    assert (done.returncode, done.stderr) == (1, "")
    assert "never-asked: provider 12.5, ours -" in done.stdout
    done = suite.ask("usage", "export", "--from", "yesterday", *url)
    assert (done.returncode, "RFC 3339" in done.stderr) == (2, True)
    found = httpx.get(
        f"{suite.url}/api/admin/differences?kind=attempt_only",
        headers={"authorization": f"Bearer {suite.key}"},
        timeout=20,
    ).json()
    assert "never-asked" in {each["model"] for each in found["differences"]}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("billing", "reconcile", "/no/such/file", "--provider", "wall"), "cannot be read"),
        (("usage", "export", "--key-file", "/no/such/key"), "no key"),
        (("billing", "rerate", "--url", "http://127.0.0.1:1"), "cannot be reached"),
    ],
)
def test_a_command_that_fails_says_why(tmp_path: Any, arguments: tuple[str, ...], words: str) -> None:
    done = Suite(tmp_path).ask(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
