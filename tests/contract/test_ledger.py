"""Every rpc of the ledger over both transports: the same answers, the same errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from omnihub.billing.v1 import billing_service_pb2 as billing_pb
from omnihub.billing.v1 import ledger_service_pb2 as pb
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.billing.v1.ledger_service_api import LedgerService

from services.billing.settings import BillingSettings
from services.common.rpc import Call, RpcError
from tests.support.billing import Directory, billing_connector, call_of, charge

NANO = 10**9
CALL = call_of("org_a")
NEXT_YEAR = Timestamp(seconds=int(datetime.now(UTC).timestamp()) + 365 * 86_400)


@dataclass(frozen=True)
class Clients:
    billing: BillingService
    ledger: LedgerService


@pytest.fixture(params=["local", "grpc"])
async def clients(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Clients]:
    async with billing_connector(
        f"sqlite:///{tmp_path / 'billing.db'}",
        tmp_path,
        Directory("org_a", "org_b", bootstrap="org_a"),
        BillingSettings(),
        transport=request.param,
    ) as connector:
        yield Clients(
            connector.connect(BillingService, "billing"), connector.connect(LedgerService, "billing")
        )


async def failure(call: Awaitable[Any]) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await call
    return caught.value


async def balance(clients: Clients, organisation_id: str = "org_a") -> str:
    request = billing_pb.GetBalanceRequest()
    return (await clients.billing.get_balance(request, call_of(organisation_id))).balance


async def settled(clients: Clients, *charges: Any) -> None:
    await clients.billing.settle(billing_pb.SettleRequest(charges=charges), CALL)


def allowance(period: str = "2026-01", amount: int = 5 * NANO, **fields: Any) -> pb.GrantAllowanceRequest:
    values = {"organisation_id": "org_b", "expires_at": NEXT_YEAR, **fields}
    return pb.GrantAllowanceRequest(period=period, amount_nano_credits=amount, **values)


def refund(charge_id: str = "c", amount: float = 0, key: str = "k", **fields: Any) -> pb.RefundChargeRequest:
    return pb.RefundChargeRequest(charge_id=charge_id, amount=amount, idempotency_key=key, **fields)


def top_up(key: str = "k", **fields: Any) -> billing_pb.GrantCreditsRequest:
    values: dict[str, Any] = {"organisation_id": "org_b", "amount": 10.0, **fields}
    return billing_pb.GrantCreditsRequest(idempotency_key=key, **values)


async def test_an_allowance_comes_once(clients: Clients) -> None:
    for _ in range(2):
        answer = await clients.ledger.grant_allowance(allowance(), CALL)
        assert answer.balance_nano_credits == 5 * NANO
    error = await failure(clients.ledger.grant_allowance(allowance(amount=6 * NANO), CALL))
    assert error.reason == "IDEMPOTENCY_KEY_REUSED"
    error = await failure(clients.ledger.grant_allowance(allowance(organisation_id="org_x"), CALL))
    assert error.reason == "NOT_FOUND"
    assert await balance(clients, "org_b") == "5"


async def test_grants_are_listed_in_the_order_of_use(clients: Clients) -> None:
    await clients.billing.grant_credits(top_up(note="thanks", expires_at="2099-01-01"), CALL)
    await clients.billing.grant_credits(top_up("k2", amount=1.5, kind="promo", priority=1), CALL)
    await clients.ledger.grant_allowance(allowance(), CALL)
    await settled(clients, charge("c", 3 * NANO, "org_b"))
    request, seen = pb.ListGrantsRequest(page_size=1), []
    while True:
        page = await clients.ledger.list_grants(request, call_of("org_b"))
        seen += [(grant.kind, grant.amount, grant.remaining, grant.note) for grant in page.grants]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert seen == [("allowance", "5", "3.5", "allowance 2026-01"), ("paid", "10", "10", "thanks")]
    everything = await clients.ledger.list_grants(pb.ListGrantsRequest(include_spent=True), call_of("org_b"))
    assert [grant.remaining for grant in everything.grants] == ["0", "3.5", "10"]
    assert everything.grants[1].expires_at == NEXT_YEAR
    assert not everything.grants[0].HasField("expires_at")
    foreign = await clients.ledger.list_grants(pb.ListGrantsRequest(), CALL)
    assert [grant.amount for grant in foreign.grants] == ["100"]


async def test_a_grant_repeated_gives_the_first_answer(clients: Clients) -> None:
    assert (await clients.billing.grant_credits(top_up(), CALL)).balance == "10"
    await settled(clients, charge("c", NANO, "org_b"))
    assert (await clients.billing.grant_credits(top_up(), CALL)).balance == "10"
    for other in (
        top_up(amount=11),
        top_up(kind="promo"),
        top_up(priority=1),
        top_up(expires_at="2099-01-01"),
    ):
        assert (await failure(clients.billing.grant_credits(other, CALL))).reason == "IDEMPOTENCY_KEY_REUSED"
    assert await balance(clients, "org_b") == "9"


async def test_a_charge_is_refunded_in_parts(clients: Clients) -> None:
    await settled(clients, charge("c", 3 * NANO))
    for _ in range(2):
        answer = await clients.ledger.refund_charge(refund(amount=1.25, note="slow", currency="USD"), CALL)
        assert (answer.refunded, answer.balance) == ("1.25", "98.25")
        assert answer.transaction_id == "refund:k"
    assert (await clients.ledger.refund_charge(refund(key="rest"), CALL)).refunded == "1.75"
    assert await balance(clients) == "100"
    error = await failure(clients.ledger.refund_charge(refund(key="more", amount=1), CALL))
    assert (error.reason, error.violations[0].field) == ("INVALID_ARGUMENT", "amount")
    error = await failure(clients.ledger.refund_charge(refund(amount=1.5), CALL))
    assert error.reason == "IDEMPOTENCY_KEY_REUSED"
    assert (await failure(clients.ledger.refund_charge(refund("x", key="x"), CALL))).reason == "NOT_FOUND"
    assert await balance(clients) == "100"


async def test_a_charge_is_corrected(clients: Clients) -> None:
    await settled(clients, charge("c", 3 * NANO))
    request = pb.CorrectChargeRequest(charge_id="c", amount=1, cost=0.5, idempotency_key="k")
    for _ in range(2):
        answer = await clients.ledger.correct_charge(request, CALL)
        assert (answer.reversal_transaction_id, answer.balance) == ("correct:k", "99")
        assert answer.transaction_id == "correct:k:again"
    assert (await clients.ledger.check_ledger(pb.CheckLedgerRequest(), CALL)).ok


async def test_a_grant_is_taken_back(clients: Clients) -> None:
    await clients.billing.grant_credits(top_up(), CALL)
    (given,) = (await clients.ledger.list_grants(pb.ListGrantsRequest(), call_of("org_b"))).grants
    request = pb.ReverseGrantRequest(grant_id=given.grant_id, idempotency_key="k", note="a typing error")
    for _ in range(2):
        answer = await clients.ledger.reverse_grant(request, CALL)
        assert (answer.reversed, answer.balance) == ("10", "0")
    request = pb.ReverseGrantRequest(grant_id="unknown", idempotency_key="k2")
    assert (await failure(clients.ledger.reverse_grant(request, CALL))).reason == "NOT_FOUND"


async def test_a_closed_account_says_so_until_it_is_opened_again(clients: Clients) -> None:
    await settled(clients, charge("c", NANO))
    close = pb.CloseAccountRequest(organisation_id="org_a", note="unpaid")
    assert [(await clients.ledger.close_account(close, CALL)).changed for _ in range(2)] == [True, False]
    hold = billing_pb.CreateHoldRequest(hold_id="h", organisation_id="org_a", amount_nano_credits=1, ttl_s=9)
    lease = billing_pb.AcquireLeaseRequest(
        lease_id="l",
        organisation_id="org_a",
        holder="p",
        wanted_nano_credits=1,
        minimum_nano_credits=1,
    )
    for call in (
        clients.billing.create_hold(hold, CALL),
        clients.billing.acquire_lease(lease, CALL),
        clients.billing.grant_credits(top_up(organisation_id="org_a"), CALL),
        clients.ledger.grant_allowance(allowance(organisation_id="org_a"), CALL),
    ):
        error = await failure(call)
        assert (error.reason, error.row.http) == ("ACCOUNT_CLOSED", 403)
        assert error.metadata == {"organisation_id": "org_a"}
    await settled(clients, charge("late", NANO))
    # Giving back is no new business.
    await clients.ledger.refund_charge(refund(), CALL)
    assert await balance(clients) == "99"
    again = pb.ReopenAccountRequest(organisation_id="org_a")
    assert [(await clients.ledger.reopen_account(again, CALL)).changed for _ in range(2)] == [True, False]
    hold.hold_id = "h2"
    await clients.billing.create_hold(hold, CALL)
    for unknown in (
        clients.ledger.close_account(pb.CloseAccountRequest(organisation_id="org_x"), CALL),
        clients.ledger.reopen_account(pb.ReopenAccountRequest(organisation_id="org_x"), CALL),
    ):
        assert (await failure(unknown)).reason == "NOT_FOUND"


async def test_the_check_counts_what_it_saw(clients: Clients) -> None:
    await settled(clients, charge("c", NANO))
    answer = await clients.ledger.check_ledger(pb.CheckLedgerRequest(), CALL)
    assert (answer.ok, list(answer.discrepancies)) == (True, [])
    assert (answer.transactions, answer.entries, answer.usage_events) == (2, 6, 1)
    listed = await clients.ledger.list_discrepancies(pb.ListDiscrepanciesRequest(include_resolved=True), CALL)
    assert not listed.discrepancies


WRONG_FIELDS: list[tuple[str, Any, str]] = [
    ("grant_allowance", allowance(amount=0), "amount_nano_credits"),
    ("grant_allowance", allowance(amount=-1), "amount_nano_credits"),
    ("grant_allowance", allowance(amount=2 * 10**18), "amount_nano_credits"),
    ("grant_allowance", allowance(period=""), "period"),
    ("grant_allowance", allowance(period="x" * 31), "period"),
    ("grant_allowance", allowance(organisation_id=""), "organisation_id"),
    ("grant_allowance", allowance(expires_at=Timestamp(seconds=1)), "expires_at"),
    ("grant_allowance", allowance(expires_at=Timestamp(seconds=-5)), "expires_at"),
    ("refund_charge", refund(amount=-1), "amount"),
    ("refund_charge", refund(amount=float("nan")), "amount"),
    ("refund_charge", refund(amount=1e300), "amount"),
    ("refund_charge", refund(amount=1e-12), "amount"),
    ("refund_charge", refund(currency="EUR"), "currency"),
    ("refund_charge", refund(charge_id=""), "charge_id"),
    ("refund_charge", refund(key=""), "idempotency_key"),
    ("refund_charge", refund(note="n" * 501), "note"),
    ("correct_charge", pb.CorrectChargeRequest(charge_id="c", amount=-1, idempotency_key="k"), "amount"),
    (
        "correct_charge",
        pb.CorrectChargeRequest(charge_id="c", amount=1, cost=-1, idempotency_key="k"),
        "cost",
    ),
    (
        "correct_charge",
        pb.CorrectChargeRequest(charge_id="c", amount=1, currency="EUR", idempotency_key="k"),
        "currency",
    ),
    ("reverse_grant", pb.ReverseGrantRequest(grant_id="", idempotency_key="k"), "grant_id"),
    ("reverse_grant", pb.ReverseGrantRequest(grant_id="g", idempotency_key="\0"), "idempotency_key"),
    ("close_account", pb.CloseAccountRequest(organisation_id=""), "organisation_id"),
    ("reopen_account", pb.ReopenAccountRequest(organisation_id="o", note="\0"), "note"),
    ("list_grants", pb.ListGrantsRequest(page_size=1001), "page_size"),
    ("list_grants", pb.ListGrantsRequest(page_token="nonsense"), "page_token"),
    ("list_discrepancies", pb.ListDiscrepanciesRequest(page_token="nonsense"), "page_token"),
]


async def test_a_wrong_field_is_named_and_nothing_is_written(clients: Clients) -> None:
    await settled(clients, charge("c", NANO))
    for method, request, field in WRONG_FIELDS:
        error = await failure(getattr(clients.ledger, method)(request, CALL))
        assert error.reason == "INVALID_ARGUMENT", (method, field)
        assert [violation.field for violation in error.violations] == [field]
        assert error.violations[0].description
    assert (await balance(clients), await balance(clients, "org_b")) == ("99", "0")


WRONG_MONEY: list[tuple[str, Any, str]] = [
    ("grant_credits", top_up(currency="EUR"), "currency"),
    ("grant_credits", top_up(kind="gift"), "kind"),
    ("grant_credits", top_up(priority=256), "priority"),
    ("grant_credits", top_up(expires_at="tomorrow"), "expires_at"),
    ("grant_credits", top_up(expires_at="2020-01-01"), "expires_at"),
    (
        "settle",
        billing_pb.SettleRequest(charges=[charge("x", 1), charge("y", 1, currency="EUR")]),
        "charges[1].currency",
    ),
    ("settle", billing_pb.SettleRequest(charges=[charge("x", 2 * 10**18)]), "charges[0].amount_nano_credits"),
    (
        "settle",
        billing_pb.SettleRequest(charges=[charge("x", 1, cost_nano_credits=-1)]),
        "charges[0].cost_nano_credits",
    ),
    (
        "settle",
        billing_pb.SettleRequest(charges=[charge("x", 1, rounding_pico_credits=1000)]),
        "charges[0].rounding_pico_credits",
    ),
]


async def test_wrong_money_is_named_and_nothing_is_written(clients: Clients) -> None:
    for method, request, field in WRONG_MONEY:
        error = await failure(getattr(clients.billing, method)(request, CALL))
        assert error.reason == "INVALID_ARGUMENT", (method, field)
        assert [violation.field for violation in error.violations] == [field]
    assert (await balance(clients), await balance(clients, "org_b")) == ("100", "0")


async def test_a_call_for_no_organisation_is_refused(clients: Clients) -> None:
    error = await failure(clients.ledger.list_grants(pb.ListGrantsRequest(), Call("req_1")))
    assert error.reason == "MISSING_CREDENTIAL"
