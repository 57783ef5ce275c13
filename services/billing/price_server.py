"""Serves omnihub.billing.v1.PriceService: message in, domain decision, message out."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from omnihub.billing.v1 import price_service_pb2 as pb
from omnihub.billing.v1.price_pb2 import Price, PriceKey
from pydantic import ValidationError

from services.billing.domain.errors import InvalidFieldError, PriceUnknownError
from services.billing.domain.margin import check_scope
from services.billing.domain.price_numbers import decimal_of, decimals_of
from services.billing.domain.usage import microseconds, moment, page_size, parse_moment
from services.billing.margins import Margins, configured_margin
from services.billing.prices import Prices, configured_price
from services.billing.settings import MarginSettings, PriceSettings
from services.billing.store.prices import ADMIN, CONFIGURED, MarginEntry, PriceEntry, PriceStore
from services.common.page_token import decode_page_token, encode_page_token
from services.common.rpc.call import Call

# A moment a caller calls now may lie this far behind by the time it arrives.
LATE_US = 60_000_000


class PriceServer:
    """Translates messages, nothing else."""

    def __init__(
        self, prices: Prices, margins: Margins, store: PriceStore, now: Callable[[], datetime]
    ) -> None:
        self._prices = prices
        self._margins = margins
        self._store = store
        self._clock = now

    async def set_price(self, request: pb.SetPriceRequest, call: Call) -> pb.SetPriceResponse:
        """See the contract."""
        _check_name("provider", request.provider)
        _check_name("model", request.model)
        if "/" in request.provider or "*" in request.provider:
            raise InvalidFieldError("provider", "is the name of one configured provider, without `/` or `*`")
        now = microseconds(self._clock())
        effective_from = parse_moment("effective_from", request.effective_from)
        if effective_from is not None and effective_from < now - LATE_US:
            raise InvalidFieldError("effective_from", "is in the past; what was charged stays as it is")
        price = Price(version="pv_withdrawn", source=ADMIN)
        if not request.withdraw:
            price = configured_price(_settings("price", request.price), ADMIN)
        entry = PriceEntry(
            provider=request.provider,
            model=request.model,
            configured_model="",
            price=price,
            source=ADMIN,
            effective_from=now if effective_from is None else max(now, effective_from),
            recorded_at=now,
            withdrawn=request.withdraw,
            actor=_actor(call),
            note=_note(request.note),
        )
        return pb.SetPriceResponse(price=self._price_version(await self._prices.set(entry)))

    async def get_price(self, request: pb.GetPriceRequest, call: Call) -> pb.GetPriceResponse:
        """See the contract."""
        key = PriceKey(
            provider=request.provider,
            model=request.model,
            configured_model=request.configured_model,
            vendor=request.vendor,
        )
        found = await self._prices.find([key])
        if not found:
            raise PriceUnknownError(
                f"nobody knows the price of {request.provider}/{request.model}; set it",
                model=f"{request.provider}/{request.model}",
            )
        (price,) = found
        now = microseconds(self._clock())
        entry = PriceEntry(
            request.provider, request.model, request.configured_model, price, price.source, now, now
        )
        version = self._price_version(entry)
        version.managed_by_file = price.source == CONFIGURED
        return pb.GetPriceResponse(price=version)

    async def list_price_versions(
        self, request: pb.ListPriceVersionsRequest, call: Call
    ) -> pb.ListPriceVersionsResponse:
        """See the contract."""
        size = page_size(request.page_size)
        entries = await self._store.versions(
            request.provider.replace("\0", ""),
            request.model.replace("\0", ""),
            _before(request.page_token),
            size + 1,
        )
        return pb.ListPriceVersionsResponse(
            prices=[self._price_version(entry) for entry in entries[:size]],
            next_page_token=encode_page_token(str(entries[size - 1].id)) if len(entries) > size else "",
        )

    async def set_margin(self, request: pb.SetMarginRequest, call: Call) -> pb.SetMarginResponse:
        """See the contract."""
        check_scope(request.organisation_id, request.plan, request.model)
        entry = MarginEntry(
            margin=configured_margin(_margin_settings(request)),
            source=ADMIN,
            recorded_at=microseconds(self._clock()),
            withdrawn=request.withdraw,
            actor=_actor(call),
            note=_note(request.note),
        )
        return pb.SetMarginResponse(margin=self._margin_version(await self._margins.set(entry)))

    async def list_margins(self, request: pb.ListMarginsRequest, call: Call) -> pb.ListMarginsResponse:
        """See the contract."""
        size = page_size(request.page_size)
        entries: list[MarginEntry] = []
        before = _before(request.page_token)
        while len(entries) <= size:
            some = await self._store.margin_versions(before, size + 1)
            entries += [entry for entry in some if not request.in_force or self._margins.in_force(entry)]
            if len(some) <= size:
                break
            before = some[-1].id
        return pb.ListMarginsResponse(
            margins=[self._margin_version(entry) for entry in entries[:size]],
            next_page_token=encode_page_token(str(entries[size - 1].id)) if len(entries) > size else "",
        )

    def _price_version(self, entry: PriceEntry) -> pb.PriceVersion:
        price = entry.price
        version = pb.PriceVersion(
            provider=entry.provider,
            model=entry.model,
            configured_model=entry.configured_model,
            version="" if entry.withdrawn else price.version,
            source=entry.source,
            effective_from=_rfc3339(entry.effective_from),
            recorded_at=_rfc3339(entry.recorded_at),
            managed_by_file=self._prices.managed_by_file(entry),
            withdrawn=entry.withdrawn,
            actor=entry.actor,
            note=entry.note,
        )
        if entry.withdrawn:
            return version
        version.price.CopyFrom(_price_numbers(price))
        for tier in price.tiers:
            version.cases.add(above_input_tokens=tier.above_input_tokens, price=_price_numbers(tier))
        for served in price.service_tiers:
            version.cases.add(service_tier=served.service_tier, price=_price_numbers(served.price))
            for tier in served.price.tiers:
                version.cases.add(
                    service_tier=served.service_tier,
                    above_input_tokens=tier.above_input_tokens,
                    price=_price_numbers(tier),
                )
        return version

    def _margin_version(self, entry: MarginEntry) -> pb.MarginVersion:
        margin = entry.margin
        version = pb.MarginVersion(
            organisation_id=margin.organisation_id,
            plan=margin.plan,
            model=margin.model,
            basis_points=margin.basis_points,
            floor=decimal_of(margin.floor_pico),
            free=margin.free,
            version=margin.version,
            source=entry.source,
            recorded_at=_rfc3339(entry.recorded_at),
            in_force=self._margins.in_force(entry),
            withdrawn=entry.withdrawn,
            actor=entry.actor,
            note=entry.note,
        )
        if margin.HasField("fixed"):
            version.fixed.CopyFrom(_price_numbers(margin.fixed))
        return version


def _price_numbers(price: Any) -> pb.PriceNumbers:
    return pb.PriceNumbers(**decimals_of(price))


def _settings(field: str, numbers: pb.PriceNumbers) -> PriceSettings:
    given = {descriptor.name: value for descriptor, value in numbers.ListFields()}
    try:
        return PriceSettings.model_validate(given)
    except ValidationError as error:
        raise _invalid(error, field) from None


def _margin_settings(request: pb.SetMarginRequest) -> MarginSettings:
    values: dict[str, Any] = {
        "organisation": request.organisation_id,
        "plan": request.plan,
        "model": request.model or "*",
        "basis_points": request.basis_points,
        "free": request.free,
    }
    if request.floor:
        values["floor"] = request.floor
    if request.HasField("fixed"):
        values["fixed"] = _settings("fixed", request.fixed)
    try:
        return MarginSettings.model_validate(values)
    except ValidationError as error:
        raise _invalid(error, "") from None


def _invalid(error: ValidationError, field: str) -> InvalidFieldError:
    first = error.errors(include_url=False, include_input=False)[0]
    path = ".".join([*([field] if field else []), *map(str, first["loc"])]) or "margin"
    return InvalidFieldError(path, first["msg"].removeprefix("Value error, "))


def _check_name(field: str, value: str) -> None:
    if not value:
        raise InvalidFieldError(field, "is empty")
    if "\0" in value:
        raise InvalidFieldError(field, "contains the character NUL")


def _before(page_token: str) -> int | None:
    if not page_token:
        return None
    (number,) = decode_page_token(page_token, 1)
    if not number.isascii() or not number.isdecimal() or len(number) > 18:
        raise InvalidFieldError("page_token", "is not one of this list; start from the first page")
    return int(number)


def _actor(call: Call) -> str:
    return call.identity.user_id or call.identity.key_id


def _note(note: str) -> str:
    return note.replace("\0", "")


def _rfc3339(at: int) -> str:
    return moment(at).isoformat().replace("+00:00", "Z")
