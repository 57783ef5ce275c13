"""Usage events: how a charge is kept, and sums over them.

Sums come from the rollup for the whole hours of a period, totals also for its whole minutes, and from the
events for the rest of it: exact, and totals cost the same however many events there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from operator import attrgetter, itemgetter
from typing import Any

import msgspec
import sqlalchemy as sa
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from omnihub.billing.v1.usage_pb2 import Charge
from sqlalchemy.ext.asyncio import AsyncConnection

from services.billing.domain.ledger import at_of, cost_of
from services.billing.domain.usage import DAY_0, Period
from services.billing.store.accounts import Accounts
from services.billing.store.rollup import (
    BY_MINUTE,
    DIMENSIONS,
    EVERYONE,
    HOUR,
    LONGEST_VALUE,
    MINUTE,
    SUMS,
    TOTAL,
    edges,
    whole,
)
from services.billing.store.tables import usage_event, usage_rollup
from services.common.bulk import Row

DAY = "day"
HOURS_OF_DAY = 24
DAY_US = HOURS_OF_DAY * HOUR
# What totals answer, which are kept by the minute, too.
_BY_TIME_ALONE = (TOTAL, DAY, "organisation")
TYPE_MESSAGE = FieldDescriptor.TYPE_MESSAGE
_units_of = attrgetter("images", "pixels", "milliseconds", "characters", "compute_milliseconds")
_NO_UNITS = 0, 0, 0, 0, 0
_encode = msgspec.json.Encoder().encode
_texts_of = itemgetter(
    *(number for number, column in enumerate(usage_event.c) if isinstance(column.type, sa.String))
)


@dataclass(frozen=True, slots=True)
class UsageSum:
    """Sums over one group; amounts in nano-credits. `amount` was paid, `cost` is what providers take."""

    group: str
    requests: int
    input_tokens: int
    output_tokens: int
    amount: int
    savings: int
    cost: int = 0
    cache_read: int = 0
    savings_routing: int = 0
    savings_cache: int = 0
    savings_prompt_cache: int = 0


def event_row(charge: Charge, transaction_id: str, late: bool, now: int) -> Row:
    """Return the row of `usage_event` that keeps all fields of a charge, in the order of its columns.

    A charge without a time of its own happened `now`.
    """
    at = at_of(charge, now)
    usage = charge.usage
    amount, saved, formula = charge.amount_nano_credits, charge.savings_nano_credits, charge.savings_formula
    saved_by_cache = charge.savings_cache_nano_credits
    saved_by_provider = charge.savings_prompt_cache_nano_credits
    row = (
        charge.charge_id,
        charge.organisation_id,
        transaction_id,
        charge.lease_id,
        charge.hold_id,
        late,
        amount,
        saved,
        at,
        _day_of(at // DAY_US),
        charge.request_id,
        charge.decision_id,
        charge.key_id,
        charge.user_id,
        charge.workspace_id,
        charge.agent_id,
        charge.provider,
        charge.model,
        charge.task,
        charge.modality,
        charge.price_version,
        charge.cost_source,
        charge.state,
        charge.latency_ms,
        usage.input_total,
        usage.cache_read,
        usage.cache_write,
        usage.cache_write_1h,
        usage.output_total,
        usage.output_reasoning,
        usage.input_audio,
        usage.output_audio,
        usage.input_image,
        usage.estimated,
        usage.provider_cost,
        charge.project_id,
        charge.run_id,
        cost_of(charge),
        charge.rounding_pico_credits,
        charge.margin_version,
        usage.service_tier,
        usage.output_image,
        *(_units_of(charge.units) if charge.HasField("units") else _NO_UNITS),
        charge.baseline_nano_credits or amount + saved,
        # Who does not say why something was saved has chosen another model.
        charge.savings_routing_nano_credits if formula else saved - saved_by_cache - saved_by_provider,
        saved_by_cache,
        saved_by_provider,
        formula,
        _encode(_rating(charge)).decode(),
    )
    # A foreign name must not keep a charge from being booked: PostgreSQL refuses this character.
    return _without_nul(row) if "\0" in "".join(_texts_of(row)) else row


def _without_nul(row: Row) -> Row:
    return tuple(value.replace("\0", "") if isinstance(value, str) else value for value in row)


@lru_cache
def _day_of(number: int) -> str:
    return date.fromordinal(DAY_0.toordinal() + number).isoformat()


def _rating(charge: Charge) -> dict[str, Any]:
    """Return what is needed to rate a charge again and has no column of its own."""
    rating: dict[str, Any] = {}
    if charge.HasField("usage"):
        rating["usage"] = _plain(charge.usage)
    if charge.HasField("units"):
        rating["units"] = _plain(charge.units)
    if charge.attempts:
        rating["attempts"] = [_plain(attempt) for attempt in charge.attempts]
    if charge.parts:
        rating["parts"] = [_plain(part) for part in charge.parts]
    if charge.HasField("limit_nano_credits"):
        rating["limit_nano_credits"] = charge.limit_nano_credits
    return rating


def _plain(message: Message) -> dict[str, Any]:
    """Return the set fields of a message as JSON has them. Several times faster than json_format."""
    plain = {}
    for field, value in message.ListFields():
        if field.type == TYPE_MESSAGE:
            value = [_plain(item) for item in value] if field.is_repeated else _plain(value)
        plain[field.name] = value
    return plain


def charge_of(row: sa.Row[Any]) -> Charge:
    """Return what of a stored event is needed to rate it again."""
    charge: Charge = json_format.Parse(row.rating, Charge())
    charge.charge_id, charge.organisation_id = row.id, row.organisation_id
    charge.amount_nano_credits, charge.cost_nano_credits = row.amount, row.cost
    charge.price_version, charge.margin_version = row.price_version, row.margin_version
    return charge


class UsageEvents(Accounts):
    """Questions about usage."""

    async def usage(
        self, organisation_id: str, period: Period, group_by: str, after: str | None, limit: int
    ) -> tuple[list[UsageSum], UsageSum]:
        """Return up to `limit` groups that come after the group `after`, and the total over all groups."""
        async with self.database.reading(snapshot=True) as connection:
            groups = (
                await sums_of(connection, organisation_id, period, group_by, after=after, limit=limit)
                if group_by
                else []
            )
            total = await sums_of(connection, organisation_id, period, TOTAL)
        return groups, total[0]


async def sums_of(
    connection: AsyncConnection,
    organisation_id: str,
    period: Period,
    group_by: str,
    *,
    after: str | None = None,
    limit: int = 1,
    dearest_first: bool = False,
) -> list[UsageSum]:
    """Return sums by a dimension, or by day, or one total; of one organisation or of EVERYONE."""
    every = sa.union_all(*_parts(organisation_id, period, group_by)).subquery()
    names = ("requests", *SUMS)
    sums = [sa.func.coalesce(sa.func.sum(every.c[name]), 0).label(name) for name in names]
    if group_by == TOTAL:
        query = sa.select(sa.literal("").label("group"), *sums)
    else:
        order = [sums[names.index("amount")].desc()] if dearest_first else []
        query = sa.select(every.c.group, *sums).group_by(every.c.group).order_by(*order, every.c.group)
        if after is not None:
            query = query.where(every.c.group > (_day_number(after) if group_by == DAY else after))
    rows = await connection.execute(query.limit(limit))
    return [_sum(row, group_by) for row in rows]


def _parts(organisation_id: str, period: Period, group_by: str) -> list[sa.Select[Any]]:
    """Return what a period consists of: the fewest rows whose sum it is."""
    units = (HOUR, MINUTE) if group_by in _BY_TIME_ALONE else (HOUR,)
    parts, rest = [], [(period.start, period.end)]
    for unit in units:
        parts += [
            _of_rollup(organisation_id, Period(*part), group_by, unit)
            for part in rest
            if whole(*part, unit)[2]
        ]
        rest = [edge for part in rest for edge in edges(*part, unit)]
    return parts + [_of_events(organisation_id, Period(*part), group_by) for part in rest]


def _of_events(organisation_id: str, period: Period, group_by: str) -> sa.Select[Any]:
    conditions = [] if organisation_id == EVERYONE else [usage_event.c.organisation_id == organisation_id]
    if period.start is not None:
        conditions.append(usage_event.c.at >= period.start)
    if period.end is not None:
        conditions.append(usage_event.c.at < period.end)
    return sa.select(
        _event_group(group_by).label("group"),
        sa.literal(1).label("requests"),
        *(usage_event.c[name] for name in SUMS),
    ).where(*conditions)


def _event_group(group_by: str) -> sa.ColumnElement[Any]:
    if group_by == TOTAL:
        return sa.literal("")
    if group_by == DAY:
        return _whole(usage_event.c.at, HOUR * HOURS_OF_DAY)
    if group_by == "organisation":
        return usage_event.c.organisation_id
    return sa.func.substr(DIMENSIONS[group_by], 1, LONGEST_VALUE)


def _whole(column: sa.ColumnElement[int], each: int) -> sa.ColumnElement[int]:
    """Return a whole division; both engines round towards zero, and times are positive."""
    return column.op("/")(sa.literal(each, sa.BigInteger))


def _of_rollup(organisation_id: str, period: Period, group_by: str, unit: int) -> sa.Select[Any]:
    rollup = usage_rollup.c
    total = TOTAL if unit == HOUR else BY_MINUTE
    conditions = [rollup.dimension == (total if group_by in _BY_TIME_ALONE else group_by)]
    if group_by == "organisation":
        conditions.append(rollup.organisation_id != EVERYONE)
    else:
        conditions.append(rollup.organisation_id == organisation_id)
    first, end, _ = whole(period.start, period.end, unit)
    if first is not None:
        conditions.append(rollup.hour >= first)
    if end is not None:
        conditions.append(rollup.hour < end)
    groups: dict[str, sa.ColumnElement[Any]] = {
        TOTAL: sa.literal(""),
        DAY: _whole(rollup.hour, DAY_US // unit),
        "organisation": rollup.organisation_id,
    }
    return sa.select(
        groups.get(group_by, rollup.value).label("group"),
        rollup.requests,
        *(rollup[name] for name in SUMS),
    ).where(*conditions)


def _day_number(day: str) -> int:
    return (date.fromisoformat(day) - DAY_0).days


def _sum(row: sa.Row[Any], group_by: str) -> UsageSum:
    group = date.fromordinal(DAY_0.toordinal() + row.group).isoformat() if group_by == DAY else row.group
    return UsageSum(
        group,
        int(row.requests),
        int(row.input_total),
        int(row.output_total),
        int(row.amount),
        int(row.savings),
        int(row.cost),
        int(row.cache_read),
        int(row.savings_routing),
        int(row.savings_cache),
        int(row.savings_prompt_cache),
    )
