"""The tables of the auth service. migrations/ creates them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from services.common.change_feed import changes_table


class UtcDateTime(sa.TypeDecorator[datetime]):
    """A point in time, always in UTC; SQLite alone would forget the zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        """Store in UTC."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        """Read as UTC."""
        if value is None or value.tzinfo is not None:
            return value
        return value.replace(tzinfo=UTC)


metadata = sa.MetaData()
_ID = sa.String(80)


def _time(name: str, *, nullable: bool = False) -> sa.Column[datetime]:
    return sa.Column(name, UtcDateTime, nullable=nullable)


organisation = sa.Table(
    "organisation",
    metadata,
    sa.Column("organisation_id", _ID, primary_key=True),
    sa.Column("name", sa.String(200), nullable=False),
    # True for at most one row, by a partial unique index: replicas that start at once make one.
    sa.Column("bootstrap", sa.Boolean, nullable=False),
    _time("created_at"),
)

user = sa.Table(
    "user",
    metadata,
    sa.Column("user_id", _ID, primary_key=True),
    # In the normal form of domain/text.py, unique.
    sa.Column("email", sa.String(254), nullable=False, unique=True),
    sa.Column("display_name", sa.String(200), nullable=False),
    sa.Column("password_hash", sa.String(300)),
    _time("created_at"),
)

membership = sa.Table(
    "membership",
    metadata,
    sa.Column("organisation_id", _ID, sa.ForeignKey("organisation.organisation_id"), primary_key=True),
    sa.Column("user_id", _ID, sa.ForeignKey("user.user_id"), primary_key=True),
    sa.Column("role", sa.String(16), nullable=False),
    _time("joined_at"),
    # Kept after removal, so that removing twice is not an error and removing a stranger is.
    _time("removed_at", nullable=True),
)

invitation = sa.Table(
    "invitation",
    metadata,
    sa.Column("invitation_id", _ID, primary_key=True),
    sa.Column("organisation_id", _ID, sa.ForeignKey("organisation.organisation_id"), nullable=False),
    sa.Column("secret_hash", sa.String(64), nullable=False, unique=True),
    sa.Column("email", sa.String(254), nullable=False),
    sa.Column("role", sa.String(16), nullable=False),
    _time("created_at"),
    _time("expires_at"),
    _time("used_at", nullable=True),
)

api_key = sa.Table(
    "api_key",
    metadata,
    sa.Column("key_id", _ID, primary_key=True),
    sa.Column("organisation_id", _ID, sa.ForeignKey("organisation.organisation_id"), nullable=False),
    # The person it belongs to, or empty.
    sa.Column("user_id", _ID, nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("hint", sa.String(8), nullable=False),
    sa.Column("secret_hash", sa.String(64), nullable=False, unique=True),
    sa.Column("previous_secret_hash", sa.String(64), unique=True),
    _time("overlap_until", nullable=True),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("allowed_models", sa.JSON, nullable=False),
    _time("created_at"),
    _time("expires_at", nullable=True),
    _time("revoked_at", nullable=True),
    sa.Column("idempotency_key", sa.String(128)),
    sa.Column("request_hash", sa.String(64), nullable=False),
    # Where it belongs, or empty.
    sa.Column("workspace_id", _ID, nullable=False),
    sa.Column("project_id", _ID, nullable=False),
    sa.Column("rescue", sa.String(16), nullable=False),
    sa.UniqueConstraint("organisation_id", "idempotency_key"),
)

workspace = sa.Table(
    "workspace",
    metadata,
    sa.Column("workspace_id", _ID, primary_key=True),
    sa.Column("organisation_id", _ID, sa.ForeignKey("organisation.organisation_id"), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    _time("created_at"),
    sa.UniqueConstraint("organisation_id", "name"),
)

project = sa.Table(
    "project",
    metadata,
    sa.Column("project_id", _ID, primary_key=True),
    sa.Column("organisation_id", _ID, sa.ForeignKey("organisation.organisation_id"), nullable=False),
    # Empty: it belongs to the organisation itself.
    sa.Column("workspace_id", _ID, nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    _time("created_at"),
    sa.UniqueConstraint("organisation_id", "name"),
)

signing_key = sa.Table(
    "signing_key",
    metadata,
    sa.Column("key_id", _ID, primary_key=True),
    # Counts up from 1, unique: replicas that start, or rotate, at once agree on one key.
    sa.Column("generation", sa.Integer, nullable=False, unique=True),
    sa.Column("private_key", sa.LargeBinary, nullable=False),
    sa.Column("sealed", sa.Boolean, nullable=False),
    _time("created_at"),
    # Null: since it was made.
    _time("signs_at", nullable=True),
    # Null: no key follows it yet.
    _time("retires_at", nullable=True),
)

login_failure = sa.Table(
    "login_failure",
    metadata,
    # SHA-256 of what was sent as email, which may be anything; or `address:` and where logins came from.
    sa.Column("email_hash", sa.String(64), primary_key=True),
    _time("window_ends_at"),
    sa.Column("attempts", sa.Integer, nullable=False),
)

changes = changes_table(metadata)
