"""Every rpc of billing over both transports: the same answers, the same errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import pytest
from omnihub.billing.v1 import billing_service_pb2 as pb
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.billing.v1.price_pb2 import PriceKey
from omnihub.common.v1.chat_pb2 import Usage

from services.billing.settings import BillingSettings, PriceSettings
from services.common.rpc import Call, RpcError
from tests.support.billing import Directory, call_of, charge, running_billing

NANO = 10**9
CALL = call_of("org_a")


@pytest.fixture(params=["local", "grpc"])
async def billing(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BillingService]:
    price = PriceSettings.model_validate({"input_per_million": "1.00", "output_per_million": "2.00"})
    async with running_billing(
        f"sqlite:///{tmp_path / 'billing.db'}",
        tmp_path,
        Directory("org_a", "org_b", bootstrap="org_a"),
        BillingSettings.model_validate({"free_credits": "0.5", "in_flight_retry_after_s": 2}),
        transport=request.param,
        configured_prices={"support-chat": price},
    ) as client:
        yield client


async def failure(call: Awaitable[Any]) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await call
    return caught.value


def hold(hold_id: str = "hold_1", amount: int = NANO, **fields: Any) -> pb.CreateHoldRequest:
    values = {"organisation_id": "org_a", "ttl_s": 60, **fields}
    return pb.CreateHoldRequest(hold_id=hold_id, amount_nano_credits=amount, **values)


def lease(lease_id: str = "lease_1", wanted: int = NANO, minimum: int = 1, **fields: Any) -> Any:
    values = {"organisation_id": "org_a", "holder": "process_1", **fields}
    return pb.AcquireLeaseRequest(
        lease_id=lease_id, wanted_nano_credits=wanted, minimum_nano_credits=minimum, **values
    )


def grant(amount: float = 25.0, key: str = "key_1", organisation_id: str = "org_b") -> Any:
    return pb.GrantCreditsRequest(organisation_id=organisation_id, amount=amount, idempotency_key=key)


async def balance(billing: BillingService, organisation_id: str = "org_a") -> tuple[str, str, str, str]:
    answer = await billing.get_balance(pb.GetBalanceRequest(), call_of(organisation_id))
    return answer.balance, answer.held, answer.leased, answer.available


async def test_a_request_from_hold_to_charge(billing: BillingService) -> None:
    assert await balance(billing) == ("100", "0", "0", "100")
    held = await billing.create_hold(hold(), CALL)
    again = await billing.create_hold(hold(), CALL)
    assert again == held
    extended = await billing.extend_hold(
        pb.ExtendHoldRequest(hold_id="hold_1", amount_nano_credits=2 * NANO, ttl_s=120), CALL
    )
    assert extended.expires_at.seconds >= held.expires_at.seconds + 59
    assert await balance(billing) == ("100", "2", "0", "98")
    settled = pb.SettleRequest(charges=[charge("req_1-1", 1_500_000_001, hold_id="hold_1")])
    assert (await billing.settle(settled, CALL)).booked == 1
    assert (await billing.settle(settled, CALL)).booked == 0
    await billing.release_hold(pb.ReleaseHoldRequest(hold_id="hold_1"), CALL)
    assert await balance(billing) == ("98.499999999", "0", "0", "98.499999999")


async def test_a_charge_that_is_booked_with_other_content_is_refused(billing: BillingService) -> None:
    await billing.settle(pb.SettleRequest(charges=[charge("c", 5)]), CALL)
    again = pb.SettleRequest(charges=[charge("new", 7), charge("c", 6)])
    error = await failure(billing.settle(again, CALL))
    assert (error.reason, error.metadata) == ("IDEMPOTENCY_KEY_REUSED", {"charge_id": "c"})
    assert "correct" in error.message
    assert await balance(billing) == ("99.999999995", "0", "0", "99.999999995")


async def test_a_lease_from_slice_to_return(billing: BillingService) -> None:
    acquired = await billing.acquire_lease(lease(wanted=5 * NANO), CALL)
    assert (acquired.granted_nano_credits, acquired.available_nano_credits) == (5 * NANO, 95 * NANO)
    assert 0 < acquired.expires_in_s <= 30
    renewed = await billing.renew_leases(pb.RenewLeasesRequest(lease_ids=["lease_1", "gone"]), CALL)
    assert (list(renewed.renewed_lease_ids), renewed.expires_in_s) == (["lease_1"], 30)
    await billing.settle(pb.SettleRequest(charges=[charge("c", NANO, lease_id="lease_1")]), CALL)
    assert await balance(billing) == ("99", "0", "4", "95")
    assert not (await billing.list_expired_leases(pb.ListExpiredLeasesRequest(), CALL)).leases
    for _ in range(2):
        closed = await billing.close_lease(pb.CloseLeaseRequest(lease_id="lease_1"), CALL)
        assert closed.returned_nano_credits == 4 * NANO
    assert await balance(billing) == ("99", "0", "0", "99")
    error = await failure(billing.acquire_lease(lease(wanted=5 * NANO), CALL))
    assert error.reason == "PRECONDITION_FAILED"


async def test_refusals_tell_what_to_do(billing: BillingService) -> None:
    error = await failure(billing.create_hold(hold("hold_0", amount=101 * NANO), CALL))
    assert (error.reason, error.retry_after_s) == ("INSUFFICIENT_CREDITS", None)
    assert error.metadata == {"required": "101", "available": "100"}
    await billing.create_hold(hold(amount=60 * NANO), CALL)
    for call in (
        billing.create_hold(hold("hold_2", 41 * NANO), CALL),
        billing.acquire_lease(lease(wanted=50 * NANO, minimum=41 * NANO), CALL),
        billing.extend_hold(
            pb.ExtendHoldRequest(hold_id="hold_1", amount_nano_credits=101 * NANO, ttl_s=1), CALL
        ),
    ):
        error = await failure(call)
        assert (error.reason, error.retry_after_s) == ("IN_FLIGHT_BUDGET_EXHAUSTED", 2)
        assert error.metadata["available"] == "40"
        assert "retry" in error.message
    assert await balance(billing) == ("100", "60", "0", "40")


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("extend_hold", pb.ExtendHoldRequest(hold_id="unknown", amount_nano_credits=1, ttl_s=1)),
        ("release_hold", pb.ReleaseHoldRequest(hold_id="unknown")),
        ("close_lease", pb.CloseLeaseRequest(lease_id="unknown")),
        ("grant_credits", grant(organisation_id="org_unknown")),
    ],
)
async def test_what_does_not_exist_is_not_found(billing: BillingService, method: str, request_: Any) -> None:
    error = await failure(getattr(billing, method)(request_, CALL))
    assert error.reason == "NOT_FOUND"


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("create_hold", hold(hold_id=""), "hold_id"),
        ("create_hold", hold(organisation_id=""), "organisation_id"),
        ("create_hold", hold(amount=0), "amount_nano_credits"),
        ("create_hold", hold(amount=-5), "amount_nano_credits"),
        ("create_hold", hold(amount=2 * 10**18), "amount_nano_credits"),
        ("create_hold", hold(limits=pb.HoldLimits(tokens=-1)), "limits.tokens"),
        ("create_hold", hold(ttl_s=0), "ttl_s"),
        ("create_hold", hold(ttl_s=86_401), "ttl_s"),
        ("create_hold", hold(hold_id="h\0"), "hold_id"),
        ("create_hold", hold(hold_id="h" * 161), "hold_id"),
        (
            "extend_hold",
            pb.ExtendHoldRequest(hold_id="h", amount_nano_credits=-1, ttl_s=1),
            "amount_nano_credits",
        ),
        ("extend_hold", pb.ExtendHoldRequest(hold_id="h", amount_nano_credits=1), "ttl_s"),
        ("release_hold", pb.ReleaseHoldRequest(), "hold_id"),
        ("acquire_lease", lease(lease_id=""), "lease_id"),
        ("acquire_lease", lease(holder=""), "holder"),
        ("acquire_lease", lease(wanted=-1), "wanted_nano_credits"),
        ("acquire_lease", lease(minimum=0), "minimum_nano_credits"),
        ("close_lease", pb.CloseLeaseRequest(), "lease_id"),
        ("renew_leases", pb.RenewLeasesRequest(lease_ids=[""]), "lease_ids[0]"),
        ("list_expired_leases", pb.ListExpiredLeasesRequest(holder="\0"), "holder"),
        (
            "settle",
            pb.SettleRequest(charges=[charge("fine", 1), charge("c", -1)]),
            "charges[1].amount_nano_credits",
        ),
        ("settle", pb.SettleRequest(charges=[charge("", 1)]), "charges[0].charge_id"),
        ("grant_credits", grant(amount=-1), "amount"),
        ("grant_credits", grant(amount=float("nan")), "amount"),
        ("grant_credits", grant(amount=0), "amount"),
        ("grant_credits", grant(amount=999999999), "amount"),
        ("grant_credits", grant(amount=0.0000000001), "amount"),
        ("grant_credits", grant(key=""), "idempotency_key"),
        (
            "grant_credits",
            pb.GrantCreditsRequest(organisation_id="org_b", amount=1, idempotency_key="k", note="n" * 501),
            "note",
        ),
        (
            "grant_credits",
            pb.GrantCreditsRequest(organisation_id="org_b", amount=1, idempotency_key="k", note="\0"),
            "note",
        ),
        ("list_usage", pb.ListUsageRequest(to="yesterday"), "to"),
        ("list_usage", pb.ListUsageRequest(**{"from": "2026-02-30"}), "from"),
        ("list_usage", pb.ListUsageRequest(**{"from": "2026-02-02", "to": "2026-02-01"}), "from"),
        ("list_usage", pb.ListUsageRequest(group_by="colour"), "group_by"),
        ("list_usage", pb.ListUsageRequest(page_size=1001), "page_size"),
        ("list_usage", pb.ListUsageRequest(page_token="nonsense"), "page_token"),
    ],
)
async def test_a_wrong_field_is_named_and_nothing_is_written(
    billing: BillingService, method: str, request_: Any, field: str
) -> None:
    error = await failure(getattr(billing, method)(request_, CALL))
    assert error.reason == "INVALID_ARGUMENT"
    assert [violation.field for violation in error.violations] == [field]
    assert error.violations[0].description
    assert await balance(billing) == ("100", "0", "0", "100")
    assert await balance(billing, "org_b") == ("0.5", "0", "0", "0.5")


async def test_ids_are_not_used_twice_for_different_things(billing: BillingService) -> None:
    await billing.create_hold(hold(), CALL)
    await billing.acquire_lease(lease(), CALL)
    await billing.grant_credits(grant(), CALL)
    for call in (
        billing.create_hold(hold(amount=5), CALL),
        billing.create_hold(hold(organisation_id="org_b"), CALL),
        billing.acquire_lease(lease(holder="process_2"), CALL),
        billing.grant_credits(grant(26), CALL),
        billing.grant_credits(grant(organisation_id="org_a"), CALL),
    ):
        assert (await failure(call)).reason == "IDEMPOTENCY_KEY_REUSED"
    assert await balance(billing) == ("100", "1", "1", "98")


async def test_an_ended_hold_stays_ended(billing: BillingService) -> None:
    await billing.create_hold(hold(), CALL)
    await billing.release_hold(pb.ReleaseHoldRequest(hold_id="hold_1"), CALL)
    await billing.release_hold(pb.ReleaseHoldRequest(hold_id="hold_1"), CALL)
    extension = pb.ExtendHoldRequest(hold_id="hold_1", amount_nano_credits=5, ttl_s=5)
    for call in (billing.create_hold(hold(), CALL), billing.extend_hold(extension, CALL)):
        assert (await failure(call)).reason == "PRECONDITION_FAILED"


async def test_credits_are_granted_once(billing: BillingService) -> None:
    for _ in range(2):
        assert (await billing.grant_credits(grant(), CALL)).balance == "25.5"
    assert (await billing.grant_credits(grant(0.000000001, "key_2"), CALL)).balance == "25.500000001"


async def test_usage_by_page_and_only_ones_own(billing: BillingService) -> None:
    charges = [
        charge(
            f"c{number}",
            100_000_001,
            model=f"openai/model-{number % 5}",
            usage=Usage(input_total=3, output_total=2),
            savings_nano_credits=number,
        )
        for number in range(10)
    ]
    await billing.settle(pb.SettleRequest(charges=[*charges, charge("foreign", 7, "org_b")]), CALL)
    request = pb.ListUsageRequest(group_by="model", page_size=2)
    seen: list[str] = []
    while True:
        page = await billing.list_usage(request, CALL)
        seen += [group.group for group in page.groups]
        assert all(group.cost == "0.200000002" for group in page.groups)
        total = page.total
        assert (total.group, total.requests, total.input_tokens, total.output_tokens) == ("", 10, 30, 20)
        assert (total.cost, total.savings) == ("1.00000001", "0.000000045")
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert seen == [f"openai/model-{number}" for number in range(5)]
    request.group_by = "day"
    error = await failure(billing.list_usage(request, CALL))
    assert (error.reason, error.violations[0].field) == ("INVALID_ARGUMENT", "page_token")
    everything = await billing.list_usage(pb.ListUsageRequest(), call_of("org_b"))
    assert (list(everything.groups), everything.total.cost) == ([], "0.000000007")
    nothing = await billing.list_usage(pb.ListUsageRequest(to="2020-01-01"), CALL)
    assert (nothing.total.requests, nothing.total.cost) == (0, "0")


async def test_a_call_for_no_organisation_is_refused(billing: BillingService) -> None:
    for call in (
        billing.get_balance(pb.GetBalanceRequest(), Call("req_1")),
        billing.list_usage(pb.ListUsageRequest(), Call("req_1")),
    ):
        assert (await failure(call)).reason == "MISSING_CREDENTIAL"


async def test_an_organisation_without_an_account_has_nothing(billing: BillingService) -> None:
    assert await balance(billing, "org_unknown") == ("0", "0", "0", "0")


async def test_prices_by_name(billing: BillingService) -> None:
    keys = [
        PriceKey(provider="wall", model="x", configured_model="support-chat"),
        PriceKey(provider="openai", model="gpt-4o-mini"),
        PriceKey(provider="wall", model="gpt-4o-mini", vendor="openai"),
        PriceKey(provider="local", model="echo"),
        PriceKey(provider="wall", model="unknown"),
    ]
    answer = await billing.batch_get_prices(pb.BatchGetPricesRequest(keys=keys), CALL)
    assert [price.key for price in answer.prices] == keys[:4]
    assert [price.source for price in answer.prices] == [
        "configured",
        "genai-prices",
        "genai-prices",
        "free",
    ]
    assert answer.prices[0].output_pico == 2_000_000
    assert answer.prices[1].version == answer.prices[2].version
    listed = await billing.list_prices(pb.ListPricesRequest(), CALL)
    assert len(listed.prices) > 1000


async def test_changes_of_prices_can_be_followed(billing: BillingService) -> None:
    stream = billing.watch_changes(pb.WatchChangesRequest(), CALL)
    async with asyncio.timeout(60):
        first = await anext(stream)
        topics = {(change.topic, change.key) for change in first.changes}
        assert topics == {("price", "*"), ("budget", "*")}
        second = await anext(stream)
    assert not second.changes
    assert second.seq == first.seq
    await stream.aclose()  # type: ignore[attr-defined]
