"""Versioned prices and margins, units and savings of usage events, sums by the hour, differences."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

HOUR = 3_600_000_000
SUMS = (
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
# Dimension, column of the event, and whether it is also summed over all organisations.
DIMENSIONS = (
    ("", "''", True),
    ("model", "model", True),
    ("provider", "provider", True),
    ("key", "key_id", False),
    ("user", "user_id", False),
    ("workspace", "workspace_id", False),
    ("agent", "agent_id", False),
    ("task", "task", False),
    ("modality", "modality", False),
    # No event has one yet.
    ("project", "''", False),
    ("run", "''", False),
)


def upgrade() -> None:
    _widen_usage_event()
    _create_prices()
    _create_margins()
    _create_rollup()
    op.create_table(
        "difference",
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
    )
    op.create_index("difference_seq", "difference", ["seq"])


def _widen_usage_event() -> None:
    numbers = (
        "output_image",
        "images",
        "pixels",
        "milliseconds",
        "characters",
        "compute_milliseconds",
        "baseline",
        "savings_routing",
        "savings_cache",
        "savings_prompt_cache",
    )
    for name in numbers:
        op.add_column("usage_event", sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))
    for name, kind in (
        ("margin_version", sa.String(64)),
        ("service_tier", sa.Text()),
        ("savings_formula", sa.String(64)),
        ("rating", sa.Text()),
    ):
        op.add_column("usage_event", sa.Column(name, kind, nullable=False, server_default=""))
    # Until now what was saved was saved by the choice of the model, and nothing was added to a cost.
    op.execute("UPDATE usage_event SET baseline = amount + savings, savings_routing = savings")
    op.execute(
        "UPDATE usage_event SET cost = amount WHERE transaction_id IN "
        "(SELECT id FROM ledger_transaction WHERE format = 0)"
    )
    op.create_index("usage_event_at", "usage_event", ["at", "id"])
    op.create_index("usage_event_page", "usage_event", ["organisation_id", "at", "id"])
    op.drop_index("usage_event_organisation", "usage_event")


def _create_prices() -> None:
    op.create_table(
        "price_version",
        sa.Column("version", sa.String(64), primary_key=True),
        sa.Column("price", sa.LargeBinary, nullable=False),
        sa.Column("recorded_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "price_entry",
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
    op.create_index("price_entry_name", "price_entry", ["provider", "model", "configured_model", "id"])
    for table in ("price_version", "price_entry"):
        _refuse_changes_of(table)


def _create_margins() -> None:
    op.create_table(
        "margin_entry",
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
    op.create_index("margin_entry_version", "margin_entry", ["version"])
    _refuse_changes_of("margin_entry")


def _create_rollup() -> None:
    op.create_table(
        "usage_rollup",
        sa.Column("organisation_id", sa.String(160), primary_key=True),
        sa.Column("dimension", sa.String(16), primary_key=True),
        sa.Column("hour", sa.BigInteger, primary_key=True),
        sa.Column("value", sa.String(300), primary_key=True),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in SUMS),
        # SQLite turns an integer that overflows into a float: the range keeps sums exact.
        sa.CheckConstraint(
            "amount BETWEEN -4000000000000000000 AND 4000000000000000000", name="usage_rollup_range"
        ),
    )
    op.create_index("usage_rollup_hour", "usage_rollup", ["dimension", "hour"])
    sum_up()


def sum_up() -> None:
    """Take in the events that are there already."""
    for dimension, column, platform in DIMENSIONS:
        _sum_up("organisation_id", dimension, column)
        if platform:
            _sum_up("''", dimension, column)


def _sum_up(organisation: str, dimension: str, column: str) -> None:
    sums = ", ".join("COUNT(*)" if name == "requests" else f"SUM({name})" for name in SUMS)
    op.execute(
        f"INSERT INTO usage_rollup (organisation_id, dimension, hour, value, {', '.join(SUMS)}) "
        f"SELECT {organisation}, '{dimension}', at / {HOUR}, SUBSTR({column}, 1, 300), {sums} "
        f"FROM usage_event GROUP BY 1, 2, 3, 4"
    )


def _refuse_changes_of(table: str) -> None:
    """A version stays what it was: charges name it."""
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
