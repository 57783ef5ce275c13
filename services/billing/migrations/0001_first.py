"""Accounts, ledger, holds, leases, usage events, change feed."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "account",
        sa.Column("id", sa.String(200), primary_key=True),
        sa.Column("organisation_id", sa.String(160), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("posted", sa.BigInteger, nullable=False),
        sa.Column("held", sa.BigInteger, nullable=False),
        sa.Column("leased", sa.BigInteger, nullable=False),
        sa.Column("welcomed", sa.Boolean, nullable=False),
        sa.Column("opened_at", sa.BigInteger, nullable=False),
        # SQLite turns an integer that overflows into a float: the range keeps sums exact.
        sa.CheckConstraint(
            "posted BETWEEN -4000000000000000000 AND 4000000000000000000", name="account_posted_range"
        ),
        sa.CheckConstraint("held >= 0 AND leased >= 0", name="account_reserved_positive"),
    )
    op.create_table(
        "ledger_transaction",
        sa.Column("id", sa.String(200), primary_key=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("actor", sa.String(160), nullable=False),
        sa.Column("note", sa.String(500), nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "ledger_entry",
        sa.Column("transaction_id", sa.String(200), sa.ForeignKey("ledger_transaction.id"), primary_key=True),
        sa.Column("account_id", sa.String(200), sa.ForeignKey("account.id"), primary_key=True),
        sa.Column("amount", sa.BigInteger, nullable=False),
    )
    op.create_index("ledger_entry_account", "ledger_entry", ["account_id"])
    _refuse_changes_of("ledger_entry")
    _refuse_changes_of("ledger_transaction")
    op.create_table(
        "hold",
        sa.Column("id", sa.String(160), primary_key=True),
        sa.Column("account_id", sa.String(200), nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("requested", sa.BigInteger, nullable=False),
        sa.Column("captured", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.CheckConstraint("state IN ('open', 'captured', 'released', 'expired')", name="hold_state"),
    )
    _index_open("hold")
    op.create_table(
        "lease",
        sa.Column("id", sa.String(160), primary_key=True),
        sa.Column("account_id", sa.String(200), nullable=False),
        sa.Column("holder", sa.String(160), nullable=False),
        sa.Column("granted", sa.BigInteger, nullable=False),
        sa.Column("spent", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.CheckConstraint("state IN ('open', 'closed')", name="lease_state"),
    )
    _index_open("lease")
    _create_usage_event()
    op.create_table(
        "changes",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("topic", sa.String(64), nullable=False),
        sa.Column("key", sa.String(256), nullable=False),
    )


def _create_usage_event() -> None:
    op.create_table(
        "usage_event",
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
    )
    op.create_index("usage_event_organisation", "usage_event", ["organisation_id", "at"])


def _index_open(table: str) -> None:
    """Ended rows pile up for ever; the sweeper and the lists only look at open ones."""
    is_open = sa.text("state = 'open'")
    op.create_index(f"{table}_open", table, ["expires_at"], sqlite_where=is_open, postgresql_where=is_open)


def _refuse_changes_of(table: str) -> None:
    """What is booked stays: a correction is a new transaction."""
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is immutable'); END"
            )
        return
    op.execute(
        f"CREATE FUNCTION refuse_change_of_{table}() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{table} is immutable'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_immutable BEFORE UPDATE OR DELETE ON {table} "
        f"FOR EACH ROW EXECUTE FUNCTION refuse_change_of_{table}()"
    )
