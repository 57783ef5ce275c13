"""Tables of the workflow service. Times are microseconds since 1970 in UTC, amounts nano-credits; 64 bits."""

from __future__ import annotations

import sqlalchemy as sa

from services.common.outbox import outbox_table

metadata = sa.MetaData()

job = sa.Table(
    "job",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("organisation_id", sa.String(160), nullable=False),
    sa.Column("owner", sa.String(160), nullable=False),
    sa.Column("key_id", sa.String(160), nullable=False),
    sa.Column("user_id", sa.String(160), nullable=False),
    sa.Column("workspace_id", sa.String(160), nullable=False),
    sa.Column("project_id", sa.String(160), nullable=False, default=""),
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
    sa.Column("hold_until", sa.BigInteger, nullable=False, default=0),
)

attempt = sa.Table(
    "attempt",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("job_id", sa.String(64), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("target_index", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("queue", sa.String(64), nullable=False),
    sa.Column("provider", sa.String(128), nullable=False),
    sa.Column("concurrency", sa.Integer, nullable=False),
    sa.Column("crashes", sa.Integer, nullable=False),
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

effect_result = sa.Table(
    "effect_result",
    metadata,
    sa.Column("effect_key", sa.String(64), primary_key=True),
    sa.Column("result", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)

job_event = sa.Table(
    "job_event",
    metadata,
    sa.Column("job_id", sa.String(64), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("type", sa.String(64), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
)

webhook_event = sa.Table(
    "webhook_event",
    metadata,
    sa.Column("provider", sa.String(128), primary_key=True),
    sa.Column("event_id", sa.String(256), primary_key=True),
    sa.Column("attempt_id", sa.String(64), nullable=False),
    sa.Column("progress", sa.LargeBinary, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
)

dead_letter = sa.Table(
    "dead_letter",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("queue", sa.String(64), nullable=False),
    sa.Column("subject_id", sa.String(160), nullable=False),
    sa.Column("reason", sa.String(64), nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("redriven_at", sa.BigInteger, nullable=False),
)

file = sa.Table(
    "file",
    metadata,
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

outbox = outbox_table(metadata)
