"""Usage events: how a charge is kept, and sums over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from omnihub.billing.v1.usage_pb2 import Charge
from sqlalchemy.ext.asyncio import AsyncConnection

from services.billing.domain.ledger import cost_of
from services.billing.domain.usage import Period, moment
from services.billing.store.accounts import Accounts
from services.billing.store.tables import usage_event

GROUP_COLUMNS = {
    "model": usage_event.c.model,
    "provider": usage_event.c.provider,
    "key": usage_event.c.key_id,
    "agent": usage_event.c.agent_id,
    "task": usage_event.c.task,
    "day": usage_event.c.day,
    "workspace": usage_event.c.workspace_id,
    "project": usage_event.c.project_id,
    "run": usage_event.c.run_id,
}
_TEXTS = tuple(column.name for column in usage_event.c if isinstance(column.type, sa.Text))
_SUMS = (
    sa.func.count().label("requests"),
    sa.func.coalesce(sa.func.sum(usage_event.c.input_total), 0).label("input_tokens"),
    sa.func.coalesce(sa.func.sum(usage_event.c.output_total), 0).label("output_tokens"),
    sa.func.coalesce(sa.func.sum(usage_event.c.amount), 0).label("cost"),
    sa.func.coalesce(sa.func.sum(usage_event.c.savings), 0).label("savings"),
)


@dataclass(frozen=True, slots=True)
class UsageSum:
    """Sums over one group; cost and savings in nano-credits."""

    group: str
    requests: int
    input_tokens: int
    output_tokens: int
    cost: int
    savings: int


def event_row(charge: Charge, transaction_id: str, late: bool, now: int) -> dict[str, Any]:
    """Return the row that keeps all fields of a charge; without a time of its own it happened `now`."""
    at = charge.at.ToMicroseconds() if charge.HasField("at") else now
    usage = charge.usage
    row: dict[str, Any] = {
        "id": charge.charge_id,
        "organisation_id": charge.organisation_id,
        "transaction_id": transaction_id,
        "lease_id": charge.lease_id,
        "hold_id": charge.hold_id,
        "late": late,
        "amount": charge.amount_nano_credits,
        "savings": charge.savings_nano_credits,
        "at": at,
        "day": moment(at).date().isoformat(),
        "request_id": charge.request_id,
        "decision_id": charge.decision_id,
        "key_id": charge.key_id,
        "user_id": charge.user_id,
        "workspace_id": charge.workspace_id,
        "project_id": charge.project_id,
        "agent_id": charge.agent_id,
        "run_id": charge.run_id,
        "provider": charge.provider,
        "model": charge.model,
        "task": charge.task,
        "modality": charge.modality,
        "price_version": charge.price_version,
        "cost_source": charge.cost_source,
        "state": charge.state,
        "latency_ms": charge.latency_ms,
        "input_total": usage.input_total,
        "cache_read": usage.cache_read,
        "cache_write": usage.cache_write,
        "cache_write_1h": usage.cache_write_1h,
        "output_total": usage.output_total,
        "output_reasoning": usage.output_reasoning,
        "input_audio": usage.input_audio,
        "output_audio": usage.output_audio,
        "input_image": usage.input_image,
        "estimated": usage.estimated,
        "provider_cost": usage.provider_cost,
        "cost": cost_of(charge),
        "rounding_pico": charge.rounding_pico_credits,
    }
    for name in _TEXTS:
        # A foreign name must not keep a charge from being booked: PostgreSQL refuses this character.
        row[name] = row[name].replace("\0", "")
    return row


class UsageEvents(Accounts):
    """Questions about usage."""

    async def usage(
        self, organisation_id: str, period: Period, group_by: str, after: str | None, limit: int
    ) -> tuple[list[UsageSum], UsageSum]:
        """Return up to `limit` groups that come after the group `after`, and the total over all groups."""
        conditions = [usage_event.c.organisation_id == organisation_id]
        if period.start is not None:
            conditions.append(usage_event.c.at >= period.start)
        if period.end is not None:
            conditions.append(usage_event.c.at < period.end)
        async with self.database.reading() as connection:
            groups = (
                await _sums(connection, conditions, GROUP_COLUMNS[group_by], after, limit) if group_by else []
            )
            total = await _sums(connection, conditions, None, None, 1)
        return groups, total[0]


async def _sums(
    connection: AsyncConnection,
    conditions: list[sa.ColumnElement[bool]],
    column: sa.Column[str] | None,
    after: str | None,
    limit: int,
) -> list[UsageSum]:
    if column is None:
        query = sa.select(sa.literal("").label("group"), *_SUMS).where(*conditions)
    else:
        query = sa.select(column.label("group"), *_SUMS).where(*conditions).group_by(column).order_by(column)
        if after is not None:
            query = query.where(column > after)
    rows = await connection.execute(query.limit(limit))
    return [
        UsageSum(
            row.group,
            row.requests,
            int(row.input_tokens),
            int(row.output_tokens),
            int(row.cost),
            int(row.savings),
        )
        for row in rows
    ]
