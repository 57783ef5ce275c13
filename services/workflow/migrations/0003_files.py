"""Shared secrets, elected sweeps, contents to remove; consents and voices; webhooks to users."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002_engine"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "shared_secret",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.Column("sealed", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "duty",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("holder", sa.String(160), nullable=False),
        sa.Column("held_until", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "file_garbage",
        sa.Column("path", sa.String(512), primary_key=True),
        sa.Column("due_at", sa.BigInteger, nullable=False),
    )
    op.create_index("file_garbage_due", "file_garbage", ["due_at"])
    expiring = sa.text("expires_at > 0")
    op.create_index("file_expiry", "file", ["expires_at"], postgresql_where=expiring, sqlite_where=expiring)
    op.create_index("file_job", "file", ["job_id"])
    _consents()
    _webhooks()


def _consents() -> None:
    op.create_table(
        "consent",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("organisation_id", sa.String(160), nullable=False),
        sa.Column("subject", sa.String(256), nullable=False),
        sa.Column("scopes", sa.String(64), nullable=False),
        sa.Column("evidence_file_id", sa.String(64), nullable=False),
        sa.Column("given_at", sa.BigInteger, nullable=False),
        sa.Column("recorded_at", sa.BigInteger, nullable=False),
        sa.Column("revoked_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("idempotency_key", sa.String(256), nullable=False),
    )
    op.create_index("consent_organisation", "consent", ["organisation_id", "recorded_at", "id"])
    op.create_index("consent_evidence", "consent", ["evidence_file_id"])
    keyed = sa.text("idempotency_key <> ''")
    op.create_index(
        "consent_idempotency",
        "consent",
        ["organisation_id", "idempotency_key"],
        unique=True,
        postgresql_where=keyed,
        sqlite_where=keyed,
    )
    op.create_table(
        "consent_event",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("consent_id", sa.String(64), nullable=False),
        sa.Column("type", sa.String(64), nullable=False),
        sa.Column("actor", sa.String(160), nullable=False),
        sa.Column("request_id", sa.String(256), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
    )
    op.create_index("consent_event_consent", "consent_event", ["consent_id", "at"])
    op.create_table(
        "voice",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("organisation_id", sa.String(160), nullable=False),
        sa.Column("consent_id", sa.String(64), nullable=False),
        sa.Column("provider", sa.String(128), nullable=False),
        sa.Column("provider_voice", sa.String(512), nullable=False),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_index("voice_consent", "voice", ["consent_id"])
    op.create_index("voice_provider_voice", "voice", ["provider_voice"])


def _webhooks() -> None:
    op.create_table(
        "webhook_endpoint",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("organisation_id", sa.String(160), nullable=False),
        sa.Column("url", sa.String(2048), nullable=False),
        sa.Column("events", sa.Text, nullable=False),
        sa.Column("enabled", sa.Boolean, nullable=False),
        sa.Column("secret", sa.LargeBinary, nullable=False),
        sa.Column("former_secret", sa.LargeBinary, nullable=False),
        sa.Column("former_until", sa.BigInteger, nullable=False),
        sa.Column("sealed", sa.Boolean, nullable=False),
        sa.Column("idempotency_key", sa.String(256), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_index("webhook_endpoint_list", "webhook_endpoint", ["organisation_id", "created_at", "id"])
    keyed = sa.text("idempotency_key <> ''")
    op.create_index(
        "webhook_endpoint_idempotency",
        "webhook_endpoint",
        ["organisation_id", "idempotency_key"],
        unique=True,
        postgresql_where=keyed,
        sqlite_where=keyed,
    )
    op.create_table(
        "webhook_delivery",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("endpoint_id", sa.String(64), nullable=False),
        sa.Column("event", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("http_status", sa.Integer, nullable=False),
        sa.Column("problem", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("next_attempt_at", sa.BigInteger, nullable=False),
    )
    op.create_index("webhook_delivery_list", "webhook_delivery", ["endpoint_id", "created_at", "id"])
    op.create_index("webhook_delivery_job", "webhook_delivery", ["job_id", "event"], unique=True)
