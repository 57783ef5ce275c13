"""Limits, their counters and slices, alerts, plans; project and run of usage events."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("usage_event", sa.Column("project_id", sa.Text, nullable=False, server_default=""))
    op.add_column("usage_event", sa.Column("run_id", sa.Text, nullable=False, server_default=""))
    op.create_table(
        "budget_limit",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("organisation_id", sa.String(160), nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("scope_id", sa.String(160), nullable=False),
        sa.Column("measure", sa.String(16), nullable=False),
        sa.Column("period", sa.String(16), nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("hard", sa.Boolean, nullable=False),
        sa.Column("thresholds", sa.JSON, nullable=False),
        sa.Column("managed_by", sa.String(16), nullable=False),
        sa.Column("since", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.String(160), nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.UniqueConstraint(
            "organisation_id",
            "scope",
            "scope_id",
            "measure",
            "period",
            "hard",
            "managed_by",
            name="budget_limit_terms",
        ),
    )
    op.create_table(
        "budget_counter",
        sa.Column("limit_id", sa.String(400), primary_key=True),
        sa.Column("window_start", sa.BigInteger, primary_key=True),
        sa.Column("spent", sa.BigInteger, nullable=False),
        sa.Column("leased", sa.BigInteger, nullable=False),
        sa.Column("window_end", sa.BigInteger),
        sa.CheckConstraint("spent >= 0 AND leased >= 0", name="budget_counter_positive"),
    )
    op.create_index("budget_counter_end", "budget_counter", ["window_end"])
    op.create_table(
        "budget_slice",
        sa.Column("id", sa.String(160), primary_key=True),
        sa.Column("limit_id", sa.String(400), nullable=False),
        sa.Column("window_start", sa.BigInteger, nullable=False),
        sa.Column("holder", sa.String(160), nullable=False),
        sa.Column("granted", sa.BigInteger, nullable=False),
        sa.Column("spent", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.CheckConstraint("state IN ('open', 'closed')", name="budget_slice_state"),
    )
    op.create_index("budget_slice_expiry", "budget_slice", ["state", "expires_at"])
    _create_alerts()
    _create_plans()


def _create_alerts() -> None:
    op.create_table(
        "budget_alert",
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
    op.create_index("budget_alert_listing", "budget_alert", ["organisation_id", "id"])


def _create_plans() -> None:
    op.create_table(
        "plan",
        sa.Column("name", sa.String(40), primary_key=True),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("revision", sa.String(80), nullable=False),
        sa.Column("actor", sa.String(160), nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "plan_assignment",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("organisation_id", sa.String(160), nullable=False),
        sa.Column("plan", sa.String(40), nullable=False),
        sa.Column("actor", sa.String(160), nullable=False),
        sa.Column("note", sa.String(500), nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
    )
    op.create_index("plan_assignment_listing", "plan_assignment", ["organisation_id", "id"])
    op.create_table(
        "organisation_plan",
        sa.Column("organisation_id", sa.String(160), primary_key=True),
        sa.Column("plan", sa.String(40), nullable=False),
        sa.Column("assignment_id", sa.String(80), nullable=False),
    )
    op.create_table(
        "plan_allowance",
        sa.Column("organisation_id", sa.String(160), primary_key=True),
        sa.Column("period", sa.String(60), primary_key=True),
        sa.Column("month_start", sa.BigInteger, nullable=False),
        sa.Column("plan", sa.String(40), nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("granted", sa.Boolean, nullable=False),
    )
