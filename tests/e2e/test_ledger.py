"""The ledger's public surface, through the edge and on the command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal

import grpc
import httpx
import pytest
from omnihub.billing.v1 import ledger_service_pb2 as pb

from tests.support.suite import Suite
from tests.support.tenant import PROMPT, Tenant

CHAT = {"model": "support-chat", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 64}


@pytest.fixture
def channel(suite: Suite) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{suite.port}") as channel:
        yield channel


def test_a_charge_is_refunded_by_the_platform(tenant: Tenant, rest: httpx.Client) -> None:
    answer = tenant.request("POST", "/v1/chat", json=CHAT).raise_for_status().json()
    total = tenant.settled(1)
    assert tenant.balance() == tenant.granted - Decimal(total["cost"])
    (attempt,) = tenant.decision(answer["outcome"]["decision_id"])["attempts"]
    body = {"idempotencyKey": f"refund-{tenant.organisation_id}", "note": "a test"}
    for _ in range(2):
        path = f"/api/admin/charges/{attempt['attempt_id']}/refund"
        refund = rest.post(path, json=body).raise_for_status().json()
        assert (refund["refunded"], Decimal(refund["balance"])) == (total["cost"], tenant.granted)
    assert tenant.balance() == tenant.granted
    (grant,) = tenant.get("/api/grants")["grants"]
    assert (grant["kind"], Decimal(grant["remaining"])) == ("paid", tenant.granted)


def test_a_grant_is_taken_back(tenant: Tenant, rest: httpx.Client) -> None:
    (grant,) = tenant.get("/api/grants")["grants"]
    body = {"idempotencyKey": f"reverse-{tenant.organisation_id}", "note": "a typing error"}
    path = f"/api/admin/grants/{grant['grantId']}/reverse"
    refused = tenant.request("POST", path, json=body)
    assert (refused.status_code, refused.json()["error"]["reason"]) == (403, "PERMISSION_DENIED")
    answer = rest.post(path, json=body).raise_for_status().json()
    assert (Decimal(answer["reversed"]), Decimal(answer["balance"])) == (tenant.granted, 0)
    assert tenant.balance() == 0


def test_nobody_refunds_themselves_and_unknown_charges_are_not_found(
    tenant: Tenant, rest: httpx.Client
) -> None:
    body = {"amount": "0.5", "idempotencyKey": "r"}
    refused = tenant.request("POST", "/api/admin/charges/att_unknown/refund", json=body)
    assert (refused.status_code, refused.json()["error"]["reason"]) == (403, "PERMISSION_DENIED")
    unknown = rest.post("/api/admin/charges/att_unknown/refund", json=body)
    assert (unknown.status_code, unknown.json()["error"]["reason"]) == (404, "NOT_FOUND")
    wrong = rest.post("/api/admin/charges/att_unknown/refund", json={**body, "currency": "EUR"})
    assert (wrong.status_code, wrong.json()["error"]["reason"]) == (400, "INVALID_ARGUMENT")
    assert "currency" in wrong.json()["error"]["message"]


def test_a_closed_account_is_told_so(tenant: Tenant, rest: httpx.Client) -> None:
    path = f"/api/admin/organisations/{tenant.organisation_id}/account"
    assert rest.post(f"{path}/close", json={"note": "unpaid"}).raise_for_status().json()["changed"]
    answer = tenant.request("POST", "/v1/chat", json=CHAT)
    assert (answer.status_code, answer.json()["error"]["reason"]) == (403, "ACCOUNT_CLOSED")
    grant = {"amount": 5, "idempotencyKey": f"closed-{tenant.organisation_id}"}
    answer = rest.post(f"/api/admin/organisations/{tenant.organisation_id}/credits", json=grant)
    assert (answer.status_code, answer.json()["error"]["reason"]) == (403, "ACCOUNT_CLOSED")
    assert rest.post(f"{path}/reopen", json={}).raise_for_status().json()["changed"]
    assert tenant.request("POST", "/v1/chat", json=CHAT).is_success


def test_the_books_add_up_by_rest_grpc_and_command(
    suite: Suite, rest: httpx.Client, channel: grpc.Channel
) -> None:
    answer = rest.post("/api/admin/ledger/check", json={}).raise_for_status().json()
    assert (answer["ok"], answer["discrepancies"]) == (True, [])
    assert answer["entries"] > 0
    assert rest.get("/api/admin/ledger/discrepancies").raise_for_status().json()["discrepancies"] == []
    check = channel.unary_unary(
        "/omnihub.billing.v1.LedgerService/CheckLedger",
        request_serializer=pb.CheckLedgerRequest.SerializeToString,
        response_deserializer=pb.CheckLedgerResponse.FromString,
    )
    credential = [("authorization", f"Bearer {suite.key}")]
    assert check(pb.CheckLedgerRequest(), metadata=credential, timeout=20).ok
    done = subprocess.run(
        [sys.executable, "-m", "services", "billing", "check"],
        cwd=suite.folder,
        env=suite.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.startswith("the books add up: ")) == (0, True), done.stderr
