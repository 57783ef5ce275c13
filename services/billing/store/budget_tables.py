"""Tables of limits and plans. Amounts are units of the limit: nano-credits, requests, tokens or slots."""

from __future__ import annotations

import sqlalchemy as sa

from services.billing.store.tables import metadata

budget_limit = sa.Table(
    "budget_limit",
    metadata,
    sa.Column("id", sa.String(80), primary_key=True),
    sa.Column("organisation_id", sa.String(160), nullable=False),
    sa.Column("scope", sa.String(16), nullable=False),
    sa.Column("scope_id", sa.String(160), nullable=False),
    sa.Column("measure", sa.String(16), nullable=False),
    # `window` is a word of SQL.
    sa.Column("period", sa.String(16), nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("hard", sa.Boolean, nullable=False),
    sa.Column("thresholds", sa.JSON, nullable=False),
    sa.Column("managed_by", sa.String(16), nullable=False),
    sa.Column("since", sa.BigInteger, nullable=False),
    sa.Column("actor", sa.String(160), nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
)

budget_counter = sa.Table(
    "budget_counter",
    metadata,
    # Also ids of limits that come from plans, which have no row of their own.
    sa.Column("limit_id", sa.String(400), primary_key=True),
    sa.Column("window_start", sa.BigInteger, primary_key=True),
    sa.Column("spent", sa.BigInteger, nullable=False),
    sa.Column("leased", sa.BigInteger, nullable=False),
    # When it may be forgotten; null for windows without an end.
    sa.Column("window_end", sa.BigInteger),
)

budget_slice = sa.Table(
    "budget_slice",
    metadata,
    sa.Column("id", sa.String(160), primary_key=True),
    sa.Column("limit_id", sa.String(400), nullable=False),
    sa.Column("window_start", sa.BigInteger, nullable=False),
    sa.Column("holder", sa.String(160), nullable=False),
    sa.Column("granted", sa.BigInteger, nullable=False),
    sa.Column("spent", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
)

budget_alert = sa.Table(
    "budget_alert",
    metadata,
    # Grows with time, so that the newest are found by it.
    sa.Column("id", sa.String(80), nullable=False, unique=True),
    sa.Column("limit_id", sa.String(400), primary_key=True),
    sa.Column("window_start", sa.BigInteger, primary_key=True),
    sa.Column("percent", sa.Integer, primary_key=True),
    sa.Column("organisation_id", sa.String(160), nullable=False),
    sa.Column("scope", sa.String(16), nullable=False),
    sa.Column("scope_id", sa.String(160), nullable=False),
    sa.Column("measure", sa.String(16), nullable=False),
    sa.Column("period", sa.String(16), nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("hard", sa.Boolean, nullable=False),
    sa.Column("spent", sa.BigInteger, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
)

plan = sa.Table(
    "plan",
    metadata,
    sa.Column("name", sa.String(40), primary_key=True),
    sa.Column("content", sa.Text, nullable=False),
    sa.Column("revision", sa.String(80), nullable=False),
    sa.Column("actor", sa.String(160), nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
)

# The newest of an organisation counts; all are kept.
plan_assignment = sa.Table(
    "plan_assignment",
    metadata,
    sa.Column("id", sa.String(80), primary_key=True),
    sa.Column("organisation_id", sa.String(160), nullable=False),
    sa.Column("plan", sa.String(40), nullable=False),
    sa.Column("actor", sa.String(160), nullable=False),
    sa.Column("note", sa.String(500), nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
)

organisation_plan = sa.Table(
    "organisation_plan",
    metadata,
    sa.Column("organisation_id", sa.String(160), primary_key=True),
    sa.Column("plan", sa.String(40), nullable=False),
    sa.Column("assignment_id", sa.String(80), nullable=False),
)

plan_allowance = sa.Table(
    "plan_allowance",
    metadata,
    sa.Column("organisation_id", sa.String(160), primary_key=True),
    sa.Column("period", sa.String(60), primary_key=True),
    sa.Column("month_start", sa.BigInteger, nullable=False),
    sa.Column("plan", sa.String(40), nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("granted", sa.Boolean, nullable=False),
)
