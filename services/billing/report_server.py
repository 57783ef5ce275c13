"""Serves omnihub.billing.v1.ReportService: message in, domain decision, message out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

from omnihub.billing.v1 import report_service_pb2 as pb
from omnihub.billing.v1.usage_pb2 import Charge, ChargePart, UsageGroup

from services.billing.domain.errors import (
    InvalidFieldError,
    MissingOrganisationError,
    PermissionDeniedError,
)
from services.billing.domain.ledger import check_id
from services.billing.domain.price_numbers import PICO
from services.billing.domain.reconciliation import Tolerance, text_of
from services.billing.domain.usage import Period, microseconds, moment, page_size, parse_period
from services.billing.reconciling import reconcile
from services.billing.store.reports import KINDS, ORGANISATION, RATING, Difference, Reports, Wanted
from services.billing.store.rollup import EVERYONE, TOTAL
from services.billing.store.usage import DAY, UsageSum, charge_of
from services.common.page_token import decode_page_token, encode_page_token
from services.common.rpc.call import Call
from services.credits.money import format_nano
from services.credits.rating import UnknownVersionError, rate_again

PLATFORM = "platform"
LARGEST_RERATING = 10_000
DEFAULT_RERATING = 1000
# Longer than any export, and no more than a body may be.
LARGEST_DOCUMENT = 32 * 2**20
_USAGE_GROUPS = ("model", "provider", "key", "user", "workspace", DAY)
_PLATFORM_GROUPS = ("model", "provider", ORGANISATION, DAY)


class ReportServer:
    """Translates messages, nothing else."""

    def __init__(self, reports: Reports, tolerance: Tolerance, now: Callable[[], datetime]) -> None:
        self._reports = reports
        self._tolerance = tolerance
        self._clock = now

    async def list_usage_events(
        self, request: pb.ListUsageEventsRequest, call: Call
    ) -> pb.ListUsageEventsResponse:
        """See the contract."""
        wanted = Wanted(
            _organisation(request.organisation_id, call),
            _period(request),
            request.state.replace("\0", ""),
            request.cost_source.replace("\0", ""),
        )
        size = page_size(request.page_size)
        rows = await self._reports.events(wanted, _position(request.page_token), size + 1)
        with_cost = call.identity.holds(PLATFORM)
        return pb.ListUsageEventsResponse(
            events=[_event(row, with_cost) for row in rows[:size]],
            next_page_token=_token(rows, size),
        )

    async def get_usage_report(
        self, request: pb.GetUsageReportRequest, call: Call
    ) -> pb.GetUsageReportResponse:
        """See the contract."""
        organisation_id = _organisation(request.organisation_id, call)
        total, *groups = await self._reports.usage(organisation_id, _period(request), TOTAL, *_USAGE_GROUPS)
        answer = pb.GetUsageReportResponse(total=usage_group(total[0]))
        for name, sums in zip(_USAGE_GROUPS, groups, strict=True):
            getattr(answer, f"by_{name}").extend(map(usage_group, sums))
        return answer

    async def get_platform_report(
        self, request: pb.GetPlatformReportRequest, call: Call
    ) -> pb.GetPlatformReportResponse:
        """See the contract."""
        period = _period(request)
        total, *groups = await self._reports.usage(EVERYONE, period, TOTAL, *_PLATFORM_GROUPS)
        organisations, users = await self._reports.active(period)
        answer = pb.GetPlatformReportResponse(
            total=_platform_group(total[0]), active_organisations=organisations, active_users=users
        )
        for name, sums in zip(_PLATFORM_GROUPS, groups, strict=True):
            getattr(answer, f"by_{name}").extend(map(_platform_group, sums))
        return answer

    async def rerate_usage(self, request: pb.RerateUsageRequest, call: Call) -> pb.RerateUsageResponse:
        """See the contract."""
        if request.page_size > LARGEST_RERATING:
            raise InvalidFieldError("page_size", f"must be at most {LARGEST_RERATING}")
        size = request.page_size or DEFAULT_RERATING
        if request.organisation_id:
            check_id("organisation_id", request.organisation_id)
        wanted = Wanted(request.organisation_id or EVERYONE, _period(request))
        rows = await self._reports.events(wanted, _position(request.page_token), size + 1)
        # What was stored before prices had versions cannot be rated again.
        rated = [row for row in rows[:size] if row.rating]
        found, rounding = await self._rate_again(rated)
        now = microseconds(self._clock())
        await self._reports.keep(found, now)
        return pb.RerateUsageResponse(
            checked=len(rated),
            reproduced=len(rated) - len(found),
            differences=[_difference(each, now) for each in found],
            rounding=_exact(rounding),
            next_page_token=_token(rows, size),
        )

    async def _rate_again(self, rows: Sequence[Any]) -> tuple[list[Difference], Fraction]:
        charges = [charge_of(row) for row in rows]
        items: list[Charge | ChargePart] = []
        for charge in charges:
            items += [charge, *charge.parts]
        prices, margins = await self._reports.prices.find_versions(
            (item.price_version for item in items), (item.margin_version for item in items)
        )
        found, rounding = [], Fraction(0)
        for charge, row in zip(charges, rows, strict=True):
            stored = f"amount {format_nano(row.amount)}, cost {format_nano(row.cost)}"
            try:
                rated = rate_again(charge, prices.get, margins.get)
            except UnknownVersionError as error:
                found.append(
                    Difference(RATING, stored, "", str(error), row.id, row.provider, row.model, row.day)
                )
                continue
            rounding += rated.rounding
            if (rated.sell, rated.cost) != (row.amount, row.cost):
                again = f"amount {format_nano(rated.sell)}, cost {format_nano(rated.cost)}"
                reason = "rated again it comes to something else"
                found.append(
                    Difference(RATING, stored, again, reason, row.id, row.provider, row.model, row.day)
                )
        return found, rounding

    async def reconcile_usage(
        self, request: pb.ReconcileUsageRequest, call: Call
    ) -> pb.ReconcileUsageResponse:
        """See the contract."""
        check_id("provider", request.provider)
        if len(request.document) > LARGEST_DOCUMENT:
            raise InvalidFieldError(
                "document", f"is longer than {LARGEST_DOCUMENT} characters; split it by month"
            )
        now = microseconds(self._clock())
        found = await reconcile(
            self._reports, self._tolerance, request.provider, request.shape, request.document, now
        )
        return pb.ReconcileUsageResponse(
            compared=len(found.compared),
            agreed=found.agreed,
            differences=[_difference(each, now) for each in found.differences],
            theirs=text_of(found.theirs),
            ours=text_of(found.ours),
            attempts=found.attempts,
            attempts_only=len(found.unmatched.uncharged),
            charges_only=len(found.unmatched.charges),
            charges_unnamed=found.unmatched.unnamed,
        )

    async def list_differences(
        self, request: pb.ListDifferencesRequest, call: Call
    ) -> pb.ListDifferencesResponse:
        """See the contract."""
        if request.kind and request.kind not in KINDS:
            raise InvalidFieldError("kind", f"must be one of {', '.join(KINDS)}, or empty")
        size = page_size(request.page_size)
        rows = await self._reports.differences(request.kind, _position(request.page_token), size + 1)
        more = encode_page_token(rows[size - 1][1].seq, rows[size - 1][0]) if len(rows) > size else ""
        return pb.ListDifferencesResponse(
            differences=[_difference(each, each.found_at) for _, each in rows[:size]], next_page_token=more
        )


def usage_group(sums: UsageSum) -> UsageGroup:
    """Return sums as an organisation sees them."""
    return UsageGroup(
        group=sums.group,
        requests=sums.requests,
        input_tokens=sums.input_tokens,
        output_tokens=sums.output_tokens,
        cost=format_nano(sums.amount),
        savings=format_nano(sums.savings),
        savings_routing=format_nano(sums.savings_routing),
        savings_cache=format_nano(sums.savings_cache),
        savings_prompt_cache=format_nano(sums.savings_prompt_cache),
        cache_read_tokens=sums.cache_read,
    )


def _platform_group(sums: UsageSum) -> pb.PlatformGroup:
    return pb.PlatformGroup(
        group=sums.group,
        requests=sums.requests,
        input_tokens=sums.input_tokens,
        output_tokens=sums.output_tokens,
        revenue=format_nano(sums.amount),
        cost=format_nano(sums.cost),
        margin=format_nano(sums.amount - sums.cost),
    )


def _event(row: Any, with_cost: bool) -> pb.UsageEvent:
    return pb.UsageEvent(
        event_id=row.id,
        organisation_id=row.organisation_id,
        at=_rfc3339(row.at),
        request_id=row.request_id,
        decision_id=row.decision_id,
        key_id=row.key_id,
        user_id=row.user_id,
        workspace_id=row.workspace_id,
        agent_id=row.agent_id,
        provider=row.provider,
        model=row.model,
        task=row.task,
        modality=row.modality,
        state=row.state,
        latency_ms=row.latency_ms,
        input_tokens=row.input_total,
        cache_read_tokens=row.cache_read,
        cache_write_tokens=row.cache_write,
        output_tokens=row.output_total,
        reasoning_tokens=row.output_reasoning,
        images=row.images,
        megapixels=row.pixels / 1_000_000,
        seconds=row.milliseconds / 1000,
        characters=row.characters,
        compute_seconds=row.compute_milliseconds / 1000,
        service_tier=row.service_tier,
        estimated=row.estimated,
        amount=format_nano(row.amount),
        cost_source=row.cost_source,
        price_version=row.price_version,
        margin_version=row.margin_version,
        savings=format_nano(row.savings),
        savings_routing=format_nano(row.savings_routing),
        savings_cache=format_nano(row.savings_cache),
        savings_prompt_cache=format_nano(row.savings_prompt_cache),
        usage_json=_usage_json(row.rating, with_cost),
        late=row.late,
        cost=format_nano(row.cost) if with_cost else "",
    )


def _usage_json(rating: str, with_cost: bool) -> str:
    """Return the usage and units of a stored event; what the provider charged is the platform's business."""
    known = json.loads(rating) if rating else {}
    usage = known.get("usage", {})
    if not with_cost:
        usage.pop("provider_cost", None)
    return json.dumps({**usage, **known.get("units", {})}, separators=(",", ":"))


def _difference(each: Difference, found_at: int) -> pb.Difference:
    return pb.Difference(
        kind=each.kind,
        event_id=each.event_id,
        provider=each.provider,
        model=each.model,
        day=each.day,
        ours=each.ours,
        theirs=each.theirs,
        reason=each.reason,
        attempt_id=each.attempt_id,
        found_at=_rfc3339(found_at),
    )


def _organisation(asked: str, call: Call) -> str:
    """Return whose usage is meant. Raises PermissionDeniedError, MissingOrganisationError."""
    own = call.identity.organisation_id
    if not asked or asked == own:
        if not own:
            raise MissingOrganisationError("the call acts for no organisation; send a credential of one")
        return own
    check_id("organisation_id", asked)
    if not call.identity.holds(PLATFORM):
        raise PermissionDeniedError(
            "organisation_id: only the scope `platform` may look at another organisation", scope=PLATFORM
        )
    return asked


def _period(request: Any) -> Period:
    # `from` is a keyword of Python.
    return parse_period(getattr(request, "from"), request.to)


def _position(page_token: str) -> tuple[int, str] | None:
    if not page_token:
        return None
    number, name = decode_page_token(page_token, 2)
    if not number.isascii() or not number.isdecimal() or len(number) > 18:
        raise InvalidFieldError("page_token", "is not one of this list; start from the first page")
    return int(number), name


def _token(rows: Sequence[Any], size: int) -> str:
    return encode_page_token(rows[size - 1].at, rows[size - 1].id) if len(rows) > size else ""


def _exact(pico: Fraction) -> str:
    """Return pico-credits as credits: basis points and thousandths have few decimals more."""
    return text_of(Decimal(pico.numerator) / Decimal(pico.denominator) / PICO)


def _rfc3339(at: int) -> str:
    return moment(at).isoformat().replace("+00:00", "Z")
