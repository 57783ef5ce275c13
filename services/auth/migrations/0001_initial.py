"""People, organisations, keys.

Revision ID: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_ID = sa.String(80)
_TIME = sa.DateTime(timezone=True)


def upgrade():
    op.create_table(
        "organisation",
        sa.Column("organisation_id", _ID, primary_key=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("bootstrap", sa.Boolean, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
    )
    op.create_index(
        "organisation_bootstrap_key",
        "organisation",
        ["bootstrap"],
        unique=True,
        sqlite_where=sa.text("bootstrap"),
        postgresql_where=sa.text("bootstrap"),
    )
    op.create_table(
        "user",
        sa.Column("user_id", _ID, primary_key=True),
        sa.Column("email", sa.String(254), nullable=False, unique=True),
        sa.Column("display_name", sa.String(200), nullable=False),
        sa.Column("password_hash", sa.String(300)),
        sa.Column("created_at", _TIME, nullable=False),
    )
    _create_belongings()
    _create_keys()
    op.create_table(
        "changes",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("topic", sa.String(64), nullable=False),
        sa.Column("key", sa.String(256), nullable=False),
    )


def _create_belongings():
    op.create_table(
        "membership",
        sa.Column("organisation_id", _ID, sa.ForeignKey("organisation.organisation_id"), primary_key=True),
        sa.Column("user_id", _ID, sa.ForeignKey("user.user_id"), primary_key=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("joined_at", _TIME, nullable=False),
        sa.Column("removed_at", _TIME),
    )
    op.create_index("membership_user", "membership", ["user_id"])
    op.create_table(
        "invitation",
        sa.Column("invitation_id", _ID, primary_key=True),
        sa.Column("organisation_id", _ID, sa.ForeignKey("organisation.organisation_id"), nullable=False),
        sa.Column("secret_hash", sa.String(64), nullable=False, unique=True),
        sa.Column("email", sa.String(254), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.Column("used_at", _TIME),
    )


def _create_keys():
    op.create_table(
        "api_key",
        sa.Column("key_id", _ID, primary_key=True),
        sa.Column("organisation_id", _ID, sa.ForeignKey("organisation.organisation_id"), nullable=False),
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("hint", sa.String(8), nullable=False),
        sa.Column("secret_hash", sa.String(64), nullable=False, unique=True),
        sa.Column("previous_secret_hash", sa.String(64), unique=True),
        sa.Column("overlap_until", _TIME),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("allowed_models", sa.JSON, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME),
        sa.Column("revoked_at", _TIME),
        sa.Column("idempotency_key", sa.String(128)),
        sa.Column("request_hash", sa.String(64), nullable=False),
        sa.UniqueConstraint("organisation_id", "idempotency_key"),
    )
    op.create_index("api_key_listing", "api_key", ["organisation_id", "key_id"])
    op.create_table(
        "signing_key",
        sa.Column("key_id", _ID, primary_key=True),
        sa.Column("generation", sa.Integer, nullable=False, unique=True),
        sa.Column("private_key", sa.LargeBinary, nullable=False),
        sa.Column("sealed", sa.Boolean, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
    )
    op.create_table(
        "login_failure",
        sa.Column("email_hash", sa.String(64), primary_key=True),
        sa.Column("window_ends_at", _TIME, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
    )
    op.create_index("login_failure_window", "login_failure", ["window_ends_at"])
