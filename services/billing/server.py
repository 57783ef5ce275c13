"""Serves omnihub.billing.v1.BillingService: message in, domain decision, message out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp
from omnihub.billing.v1 import billing_service_pb2 as pb
from omnihub.billing.v1.usage_pb2 import Charge

from services.billing.domain.errors import InvalidFieldError, MissingOrganisationError, NotFoundError
from services.billing.domain.grant import requested_grant
from services.billing.domain.ledger import (
    LATEST_SECOND,
    check_amount,
    check_charges,
    check_currency,
    check_id,
)
from services.billing.domain.limit import who_of
from services.billing.domain.usage import check_group, microseconds, page_size, parse_moment, parse_period
from services.billing.margins import Margins
from services.billing.organisations import Organisations
from services.billing.prices import Prices
from services.billing.report_server import usage_group
from services.billing.settings import BillingSettings
from services.billing.store import Store
from services.billing.store.held_limits import Drawing
from services.common.change_feed import ChangeFeed
from services.common.page_token import decode_page_token, encode_page_token
from services.common.rpc.call import Call
from services.credits.money import NANO, format_nano

SECOND = 1_000_000
LONGEST_TTL_S = 86_400


class BillingServer:
    """Translates messages, nothing else."""

    def __init__(
        self,
        settings: BillingSettings,
        store: Store,
        prices: Prices,
        margins: Margins,
        organisations: Organisations,
        feed: ChangeFeed,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._prices = prices
        self._margins = margins
        self._organisations = organisations
        self._feed = feed
        self._clock = now
        self._lease_ttl = settings.lease_ttl_s * SECOND
        self._largest_grant = int(settings.largest_grant_credits * NANO)

    async def list_prices(self, request: pb.ListPricesRequest, call: Call) -> pb.ListPricesResponse:
        """See the contract."""
        return pb.ListPricesResponse(prices=await self._prices.all())

    async def batch_get_prices(
        self, request: pb.BatchGetPricesRequest, call: Call
    ) -> pb.BatchGetPricesResponse:
        """See the contract."""
        prices = await self._prices.find(request.keys, fallback=request.include_fallback)
        margins = self._margins
        answer = pb.BatchGetPricesResponse(prices=prices, margins_version=margins.version)
        if request.margins_version != margins.version:
            answer.margins.extend(margins.margins)
            answer.plans.update(margins.plans)
        return answer

    async def acquire_lease(self, request: pb.AcquireLeaseRequest, call: Call) -> pb.AcquireLeaseResponse:
        """See the contract."""
        check_id("lease_id", request.lease_id)
        check_id("organisation_id", request.organisation_id)
        check_id("holder", request.holder)
        check_amount("wanted_nano_credits", request.wanted_nano_credits)
        check_amount("minimum_nano_credits", request.minimum_nano_credits)
        now = self._now()
        granted, expires_at, available = await self._store.acquire_lease(
            request.lease_id,
            request.organisation_id,
            request.holder,
            request.wanted_nano_credits,
            request.minimum_nano_credits,
            self._lease_ttl,
            now,
        )
        return pb.AcquireLeaseResponse(
            granted_nano_credits=granted,
            expires_in_s=max(0, expires_at - now) // SECOND,
            available_nano_credits=available,
        )

    async def renew_leases(self, request: pb.RenewLeasesRequest, call: Call) -> pb.RenewLeasesResponse:
        """See the contract."""
        for index, lease_id in enumerate(request.lease_ids):
            check_id(f"lease_ids[{index}]", lease_id)
        renewed = await self._store.renew_leases(request.lease_ids, self._lease_ttl, self._now())
        return pb.RenewLeasesResponse(renewed_lease_ids=renewed, expires_in_s=self._lease_ttl // SECOND)

    async def close_lease(self, request: pb.CloseLeaseRequest, call: Call) -> pb.CloseLeaseResponse:
        """See the contract."""
        check_id("lease_id", request.lease_id)
        return pb.CloseLeaseResponse(returned_nano_credits=await self._store.close_lease(request.lease_id))

    async def list_expired_leases(
        self, request: pb.ListExpiredLeasesRequest, call: Call
    ) -> pb.ListExpiredLeasesResponse:
        """See the contract."""
        if request.holder:
            check_id("holder", request.holder)
        expired = await self._store.expired_leases(request.holder, self._now())
        leases = [pb.ExpiredLease(lease_id=lease_id, holder=holder) for lease_id, holder in expired]
        return pb.ListExpiredLeasesResponse(leases=leases)

    async def create_hold(self, request: pb.CreateHoldRequest, call: Call) -> pb.CreateHoldResponse:
        """See the contract."""
        check_id("hold_id", request.hold_id)
        check_id("organisation_id", request.organisation_id)
        limited = request.HasField("limits")
        check_amount("amount_nano_credits", request.amount_nano_credits, zero=limited)
        expires_at = await self._store.create_hold(
            request.hold_id,
            request.organisation_id,
            request.amount_nano_credits,
            _ttl(request.ttl_s),
            self._now(),
            _drawing(request, self._now()) if limited else None,
        )
        return pb.CreateHoldResponse(expires_at=_timestamp(expires_at))

    async def extend_hold(self, request: pb.ExtendHoldRequest, call: Call) -> pb.ExtendHoldResponse:
        """See the contract."""
        check_id("hold_id", request.hold_id)
        check_amount("amount_nano_credits", request.amount_nano_credits, zero=True)
        expires_at = await self._store.extend_hold(
            request.hold_id, request.amount_nano_credits, _ttl(request.ttl_s), self._now()
        )
        return pb.ExtendHoldResponse(expires_at=_timestamp(expires_at))

    async def release_hold(self, request: pb.ReleaseHoldRequest, call: Call) -> pb.ReleaseHoldResponse:
        """See the contract."""
        check_id("hold_id", request.hold_id)
        await self._store.release_hold(request.hold_id)
        return pb.ReleaseHoldResponse()

    async def settle(self, request: pb.SettleRequest, call: Call) -> pb.SettleResponse:
        """See the contract."""
        check_charges(request.charges)
        return pb.SettleResponse(booked=await self._store.settle(request.charges, self._now()))

    async def grant_credits(self, request: pb.GrantCreditsRequest, call: Call) -> pb.GrantCreditsResponse:
        """See the contract."""
        check_id("organisation_id", request.organisation_id)
        check_id("idempotency_key", request.idempotency_key)
        check_currency("currency", request.currency)
        now = self._now()
        grant = requested_grant(
            request.organisation_id,
            request.amount,
            request.idempotency_key,
            request.note,
            call.identity.user_id or call.identity.key_id,
            self._largest_grant,
            kind=request.kind,
            priority=request.priority if request.HasField("priority") else None,
            expires_at=parse_moment("expires_at", request.expires_at),
        )
        try:
            balance = await self._store.grant(grant, now)
        except NotFoundError:
            # It may be newer than the last look at the feed.
            await self._organisations.sync()
            balance = await self._store.grant(grant, now)
        return pb.GrantCreditsResponse(balance=format_nano(balance.posted))

    async def get_balance(self, request: pb.GetBalanceRequest, call: Call) -> pb.GetBalanceResponse:
        """See the contract."""
        balance = await self._store.balance(_organisation_of(call))
        return pb.GetBalanceResponse(
            balance=format_nano(balance.posted),
            held=format_nano(balance.held),
            leased=format_nano(balance.leased),
            available=format_nano(balance.available),
        )

    async def list_usage(self, request: pb.ListUsageRequest, call: Call) -> pb.ListUsageResponse:
        """See the contract."""
        # `from` is a keyword of Python.
        period = parse_period(getattr(request, "from"), request.to)
        check_group(request.group_by)
        size, after = page_size(request.page_size), None
        if request.page_token:
            group_by, after = decode_page_token(request.page_token, 2)
            if group_by != request.group_by:
                raise InvalidFieldError(
                    "page_token", "belongs to another group_by; start from the first page"
                )
        groups, total = await self._store.usage(
            _organisation_of(call), period, request.group_by, after, size + 1
        )
        return pb.ListUsageResponse(
            groups=[usage_group(sums) for sums in groups[:size]],
            next_page_token=(
                encode_page_token(request.group_by, groups[size - 1].group) if len(groups) > size else ""
            ),
            total=usage_group(total),
        )

    async def watch_changes(
        self, request: pb.WatchChangesRequest, call: Call
    ) -> AsyncIterator[pb.WatchChangesResponse]:
        """See the contract."""
        async with aclosing(self._feed.watch(request.after_seq)) as news:  # type: ignore[type-var]
            async for changes, seq in news:
                yield pb.WatchChangesResponse(changes=changes, seq=seq)

    def _now(self) -> int:
        return microseconds(self._clock())


def _organisation_of(call: Call) -> str:
    if not call.identity.organisation_id:
        raise MissingOrganisationError("the call acts for no organisation; send a credential of one")
    return call.identity.organisation_id


def _ttl(seconds: int) -> int:
    if not 1 <= seconds <= LONGEST_TTL_S:
        raise InvalidFieldError("ttl_s", f"must be between 1 and {LONGEST_TTL_S} seconds")
    return seconds * SECOND


def _drawing(request: pb.CreateHoldRequest, now: int) -> Drawing:
    limits = request.limits
    check_amount("limits.tokens", limits.tokens, zero=True)
    if not 0 <= limits.at.seconds <= LATEST_SECOND:
        raise InvalidFieldError("limits.at", "must be between the years 1970 and 9999")
    whose = Charge(
        organisation_id=request.organisation_id,
        workspace_id=limits.workspace_id,
        project_id=limits.project_id,
        key_id=limits.key_id,
    )
    at = limits.at.ToMicroseconds() if limits.HasField("at") else now
    return Drawing(who_of(whose), limits.tokens, at)


def _timestamp(at: int) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromMicroseconds(at)
    return timestamp
