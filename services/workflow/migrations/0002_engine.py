"""Limits of providers, crashes, holds that are extended, notices that are worked off later."""

import sqlalchemy as sa
from alembic import op

revision = "0002_engine"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    number = {"nullable": False, "server_default": "0"}
    text = {"nullable": False, "server_default": ""}
    op.add_column("job", sa.Column("hold_until", sa.BigInteger, **number))
    op.add_column("attempt", sa.Column("provider", sa.String(128), **text))
    op.add_column("attempt", sa.Column("concurrency", sa.Integer, **number))
    op.add_column("attempt", sa.Column("crashes", sa.Integer, **number))
    # What was noted before lacks what the new columns hold, and is no longer asked for.
    op.drop_table("webhook_event")
    op.create_table(
        "webhook_event",
        sa.Column("provider", sa.String(128), primary_key=True),
        sa.Column("event_id", sa.String(256), primary_key=True),
        sa.Column("attempt_id", sa.String(64), nullable=False),
        sa.Column("progress", sa.LargeBinary, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
    )
    op.create_index("dead_letter_subject", "dead_letter", ["subject_id"])
    op.create_index("dead_letter_at", "dead_letter", ["at", "id"])
    op.drop_index("attempt_lease", "attempt")
    lost = sa.text("state IN ('dispatched', 'claimed')")
    op.create_index("attempt_lost", "attempt", ["lease_until"], postgresql_where=lost, sqlite_where=lost)
    limited = sa.text("concurrency > 0 AND state IN ('claimed', 'accepted', 'parked')")
    op.create_index(
        "attempt_provider",
        "attempt",
        ["provider", "state"],
        postgresql_where=limited,
        sqlite_where=limited,
    )
    held = sa.text("hold_id <> '' AND state IN ('queued', 'running', 'cancel_requested')")
    op.create_index("job_hold", "job", ["hold_until"], postgresql_where=held, sqlite_where=held)
    op.drop_index("outbox_due", "outbox")
    op.create_index("outbox_queue_due", "outbox", ["queue", "due_at", "id"])
    op.create_index("outbox_subject", "outbox", ["subject_id"])
