"""Tables of billing. Amounts are nano-credits, times microseconds since 1970 in UTC, both 64 bits."""

from __future__ import annotations

import sqlalchemy as sa

from services.common.change_feed import changes_table

metadata = sa.MetaData()

account = sa.Table(
    "account",
    metadata,
    sa.Column("id", sa.String(200), primary_key=True),
    sa.Column("organisation_id", sa.String(160), nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("posted", sa.BigInteger, nullable=False),
    sa.Column("held", sa.BigInteger, nullable=False),
    sa.Column("leased", sa.BigInteger, nullable=False),
    sa.Column("welcomed", sa.Boolean, nullable=False),
    sa.Column("opened_at", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("carry_pico", sa.Integer, nullable=False),
)

ledger_transaction = sa.Table(
    "ledger_transaction",
    metadata,
    sa.Column("id", sa.String(200), primary_key=True),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("actor", sa.String(160), nullable=False),
    sa.Column("note", sa.String(500), nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("organisation_id", sa.String(160), nullable=False),
    sa.Column("refers_to", sa.String(200), nullable=False),
    sa.Column("format", sa.Integer, nullable=False),
)

ledger_entry = sa.Table(
    "ledger_entry",
    metadata,
    sa.Column("transaction_id", sa.String(200), primary_key=True),
    sa.Column("account_id", sa.String(200), primary_key=True),
    sa.Column("amount", sa.BigInteger, nullable=False),
)

hold = sa.Table(
    "hold",
    metadata,
    sa.Column("id", sa.String(160), primary_key=True),
    sa.Column("account_id", sa.String(200), nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("requested", sa.BigInteger, nullable=False),
    sa.Column("captured", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("refusal", sa.Text, nullable=False),
)

lease = sa.Table(
    "lease",
    metadata,
    sa.Column("id", sa.String(160), primary_key=True),
    sa.Column("account_id", sa.String(200), nullable=False),
    sa.Column("holder", sa.String(160), nullable=False),
    sa.Column("granted", sa.BigInteger, nullable=False),
    sa.Column("spent", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("refusal", sa.Text, nullable=False),
)

usage_event = sa.Table(
    "usage_event",
    metadata,
    sa.Column("id", sa.String(160), primary_key=True),
    sa.Column("organisation_id", sa.String(160), nullable=False),
    sa.Column("transaction_id", sa.String(200), nullable=False),
    sa.Column("lease_id", sa.Text, nullable=False),
    sa.Column("hold_id", sa.Text, nullable=False),
    sa.Column("late", sa.Boolean, nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("savings", sa.BigInteger, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("day", sa.String(10), nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("decision_id", sa.Text, nullable=False),
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("user_id", sa.Text, nullable=False),
    sa.Column("workspace_id", sa.Text, nullable=False),
    sa.Column("agent_id", sa.Text, nullable=False),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("modality", sa.Text, nullable=False),
    sa.Column("price_version", sa.Text, nullable=False),
    sa.Column("cost_source", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("latency_ms", sa.BigInteger, nullable=False),
    sa.Column("input_total", sa.BigInteger, nullable=False),
    sa.Column("cache_read", sa.BigInteger, nullable=False),
    sa.Column("cache_write", sa.BigInteger, nullable=False),
    sa.Column("cache_write_1h", sa.BigInteger, nullable=False),
    sa.Column("output_total", sa.BigInteger, nullable=False),
    sa.Column("output_reasoning", sa.BigInteger, nullable=False),
    sa.Column("input_audio", sa.BigInteger, nullable=False),
    sa.Column("output_audio", sa.BigInteger, nullable=False),
    sa.Column("input_image", sa.BigInteger, nullable=False),
    sa.Column("estimated", sa.Boolean, nullable=False),
    sa.Column("provider_cost", sa.Text, nullable=False),
    sa.Column("project_id", sa.Text, nullable=False),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("cost", sa.BigInteger, nullable=False),
    sa.Column("rounding_pico", sa.Integer, nullable=False),
    sa.Column("margin_version", sa.String(64), nullable=False),
    sa.Column("service_tier", sa.Text, nullable=False),
    sa.Column("output_image", sa.BigInteger, nullable=False),
    sa.Column("images", sa.BigInteger, nullable=False),
    sa.Column("pixels", sa.BigInteger, nullable=False),
    sa.Column("milliseconds", sa.BigInteger, nullable=False),
    sa.Column("characters", sa.BigInteger, nullable=False),
    sa.Column("compute_milliseconds", sa.BigInteger, nullable=False),
    sa.Column("baseline", sa.BigInteger, nullable=False),
    sa.Column("savings_routing", sa.BigInteger, nullable=False),
    sa.Column("savings_cache", sa.BigInteger, nullable=False),
    sa.Column("savings_prompt_cache", sa.BigInteger, nullable=False),
    sa.Column("savings_formula", sa.String(64), nullable=False),
    sa.Column("rating", sa.Text, nullable=False),
)

usage_rollup = sa.Table(
    "usage_rollup",
    metadata,
    sa.Column("organisation_id", sa.String(160), primary_key=True),
    sa.Column("dimension", sa.String(16), primary_key=True),
    sa.Column("hour", sa.BigInteger, primary_key=True),
    sa.Column("value", sa.String(300), primary_key=True),
    *(
        sa.Column(name, sa.BigInteger, nullable=False)
        for name in (
            "requests",
            "input_total",
            "cache_read",
            "output_total",
            "amount",
            "cost",
            "savings",
            "savings_routing",
            "savings_cache",
            "savings_prompt_cache",
        )
    ),
)

price_version = sa.Table(
    "price_version",
    metadata,
    sa.Column("version", sa.String(64), primary_key=True),
    sa.Column("price", sa.LargeBinary, nullable=False),
    sa.Column("recorded_at", sa.BigInteger, nullable=False),
)

price_entry = sa.Table(
    "price_entry",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("provider", sa.String(300), nullable=False),
    sa.Column("model", sa.String(300), nullable=False),
    sa.Column("configured_model", sa.String(300), nullable=False),
    sa.Column("version", sa.String(64), nullable=False),
    sa.Column("source", sa.String(32), nullable=False),
    sa.Column("effective_from", sa.BigInteger, nullable=False),
    sa.Column("recorded_at", sa.BigInteger, nullable=False),
    sa.Column("withdrawn", sa.Boolean, nullable=False),
    sa.Column("actor", sa.String(160), nullable=False),
    sa.Column("note", sa.String(500), nullable=False),
)

margin_entry = sa.Table(
    "margin_entry",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("organisation_id", sa.String(160), nullable=False),
    sa.Column("plan", sa.String(160), nullable=False),
    sa.Column("model", sa.String(300), nullable=False),
    sa.Column("version", sa.String(64), nullable=False),
    sa.Column("margin", sa.LargeBinary, nullable=False),
    sa.Column("source", sa.String(32), nullable=False),
    sa.Column("recorded_at", sa.BigInteger, nullable=False),
    sa.Column("withdrawn", sa.Boolean, nullable=False),
    sa.Column("actor", sa.String(160), nullable=False),
    sa.Column("note", sa.String(500), nullable=False),
)

difference = sa.Table(
    "difference",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("event_id", sa.String(160), nullable=False),
    sa.Column("provider", sa.String(300), nullable=False),
    sa.Column("model", sa.String(300), nullable=False),
    sa.Column("day", sa.String(10), nullable=False),
    sa.Column("ours", sa.Text, nullable=False),
    sa.Column("theirs", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("found_at", sa.BigInteger, nullable=False),
    sa.Column("attempt_id", sa.String(300), nullable=False),
)

credit_grant = sa.Table(
    "credit_grant",
    metadata,
    sa.Column("id", sa.String(200), primary_key=True),
    sa.Column("organisation_id", sa.String(160), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("source", sa.String(200), nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("remaining", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=True),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("balance_after", sa.BigInteger, nullable=False),
)

grant_movement = sa.Table(
    "grant_movement",
    metadata,
    sa.Column("transaction_id", sa.String(200), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("grant_id", sa.String(200), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
)

correction = sa.Table(
    "correction",
    metadata,
    sa.Column("id", sa.String(200), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("subject", sa.String(200), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("transaction_id", sa.String(200), nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("cost", sa.BigInteger, nullable=False),
    sa.Column("balance_after", sa.BigInteger, nullable=False),
)

unsealed = sa.Table(
    "unsealed",
    metadata,
    sa.Column("transaction_id", sa.String(200), primary_key=True),
)

ledger_block = sa.Table(
    "ledger_block",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("transactions", sa.Integer, nullable=False),
    sa.Column("previous_hash", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("sealed_at", sa.BigInteger, nullable=False),
)

ledger_seal = sa.Table(
    "ledger_seal",
    metadata,
    sa.Column("block", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("transaction_id", sa.String(200), nullable=False),
)

ledger_head = sa.Table(
    "ledger_head",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)

discrepancy = sa.Table(
    "discrepancy",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("rule", sa.String(32), nullable=False),
    sa.Column("subject", sa.String(256), nullable=False),
    sa.Column("expected", sa.Text, nullable=False),
    sa.Column("found", sa.Text, nullable=False),
    sa.Column("first_seen_at", sa.BigInteger, nullable=False),
    sa.Column("last_seen_at", sa.BigInteger, nullable=False),
    sa.Column("resolved_at", sa.BigInteger, nullable=True),
)

elected_work = sa.Table(
    "elected_work",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("done_at", sa.BigInteger, nullable=False),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("actor", sa.String(160), nullable=False),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("organisation_id", sa.String(160), nullable=False),
    sa.Column("subject", sa.String(200), nullable=False),
    sa.Column("note", sa.String(500), nullable=False),
)

changes = changes_table(metadata)
