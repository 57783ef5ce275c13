"""Jobs, attempts, results, events, dead letters, outbox."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "job",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("organisation_id", sa.String(160), nullable=False),
        sa.Column("owner", sa.String(160), nullable=False),
        sa.Column("key_id", sa.String(160), nullable=False),
        sa.Column("user_id", sa.String(160), nullable=False),
        sa.Column("workspace_id", sa.String(160), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("priority", sa.String(16), nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("input", sa.LargeBinary, nullable=False),
        sa.Column("targets", sa.LargeBinary, nullable=False),
        sa.Column("idempotency_key", sa.String(256), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("strict", sa.Boolean, nullable=False),
        sa.Column("parallel", sa.Boolean, nullable=False),
        sa.Column("parent_id", sa.String(64), nullable=False),
        sa.Column("item_index", sa.Integer, nullable=False),
        sa.Column("max_concurrency", sa.Integer, nullable=False),
        sa.Column("webhook_endpoint_id", sa.String(64), nullable=False),
        sa.Column("hold_id", sa.String(160), nullable=False),
        sa.Column("estimate", sa.BigInteger, nullable=False),
        sa.Column("cost", sa.BigInteger, nullable=False),
        sa.Column("settled", sa.Boolean, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("model_used", sa.String(512), nullable=False),
        sa.Column("progress", sa.Float, nullable=True),
        sa.Column("queue_position", sa.Integer, nullable=True),
        sa.Column("result", sa.LargeBinary, nullable=False),
        sa.Column("error_reason", sa.String(64), nullable=False),
        sa.Column("error_message", sa.Text, nullable=False),
        sa.Column("error_retryable", sa.Boolean, nullable=False),
        sa.Column("maybe_double_charge", sa.Boolean, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger, nullable=False),
        sa.Column("deadline_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "attempt",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("target_index", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("queue", sa.String(64), nullable=False),
        sa.Column("effect_key", sa.String(64), nullable=False),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("worker", sa.String(160), nullable=False),
        sa.Column("lease_until", sa.BigInteger, nullable=False),
        sa.Column("asked", sa.Boolean, nullable=False),
        sa.Column("provider_job_id", sa.String(512), nullable=False),
        sa.Column("poll_at", sa.BigInteger, nullable=False),
        sa.Column("polls", sa.Integer, nullable=False),
        sa.Column("cancel_sent", sa.Boolean, nullable=False),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("dispatched_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "effect_result",
        sa.Column("effect_key", sa.String(64), primary_key=True),
        sa.Column("result", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "job_event",
        sa.Column("job_id", sa.String(64), primary_key=True),
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("type", sa.String(64), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "webhook_event",
        sa.Column("provider", sa.String(128), primary_key=True),
        sa.Column("event_id", sa.String(256), primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "dead_letter",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("queue", sa.String(64), nullable=False),
        sa.Column("subject_id", sa.String(160), nullable=False),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("redriven_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "file",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("organisation_id", sa.String(160), nullable=False),
        sa.Column("owner", sa.String(160), nullable=False),
        sa.Column("purpose", sa.String(16), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("mime", sa.String(128), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("path", sa.String(512), nullable=False),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
    )
    op.create_index("file_organisation", "file", ["organisation_id", "created_at", "id"])
    op.create_table(
        "outbox",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("queue", sa.String(64), nullable=False),
        sa.Column("subject_id", sa.String(160), nullable=False),
        sa.Column("due_at", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_index("outbox_due", "outbox", ["due_at", "id"])
    op.create_index("job_owner", "job", ["organisation_id", "owner", "created_at", "id"])
    op.create_index("job_parent", "job", ["parent_id", "item_index"])
    keyed = sa.text("idempotency_key <> ''")
    op.create_index(
        "job_idempotency",
        "job",
        ["organisation_id", "owner", "idempotency_key"],
        unique=True,
        postgresql_where=keyed,
        sqlite_where=keyed,
    )
    live = sa.text("state IN ('queued', 'running', 'cancel_requested')")
    op.create_index("job_deadline", "job", ["deadline_at"], postgresql_where=live, sqlite_where=live)
    unsettled = sa.text("NOT settled AND ended_at > 0")
    op.create_index("job_unsettled", "job", ["ended_at"], postgresql_where=unsettled, sqlite_where=unsettled)
    op.create_index("attempt_job", "attempt", ["job_id", "number"], unique=True)
    waiting = sa.text("state = 'accepted'")
    op.create_index("attempt_poll", "attempt", ["poll_at"], postgresql_where=waiting, sqlite_where=waiting)
    claimed = sa.text("state = 'claimed'")
    op.create_index(
        "attempt_lease", "attempt", ["lease_until"], postgresql_where=claimed, sqlite_where=claimed
    )
    dispatched = sa.text("state = 'dispatched'")
    op.create_index(
        "attempt_dispatched",
        "attempt",
        ["dispatched_at"],
        postgresql_where=dispatched,
        sqlite_where=dispatched,
    )
    op.create_index("attempt_provider_job", "attempt", ["provider_job_id"])
