"""Two answers of one id stand beside each other: a provider that counts them begins anew with each start."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

TABLE = "stored_response"
EMPTY = sa.text("''")


def upgrade() -> None:
    _create("stored_response_by_attempt", "organisation_id", "response_id", "attempt_id")
    _take_over("stored_response_by_attempt")


def downgrade() -> None:
    _create("stored_response_by_id", "organisation_id", "response_id")
    _take_over("stored_response_by_id", "ON CONFLICT DO NOTHING")


def _create(name: str, *key: str) -> None:
    op.create_table(
        name,
        sa.Column("organisation_id", sa.String(64), nullable=False),
        sa.Column("response_id", sa.String(256), nullable=False),
        sa.Column("decision_id", sa.String(64), nullable=False),
        sa.Column("attempt_id", sa.String(64), nullable=False),
        sa.Column("target", sa.String(512), nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("pending", sa.Boolean, nullable=False),
        sa.Column("polled_at", sa.BigInteger, nullable=False),
        sa.Column("charge", sa.LargeBinary, nullable=False),
        sa.Column("price", sa.LargeBinary, nullable=False),
        sa.Column("margin", sa.LargeBinary, nullable=False),
        sa.Column("reserved", sa.BigInteger, nullable=False),
        sa.Column("baseline", sa.LargeBinary, nullable=False, server_default=EMPTY),
        sa.Column("baseline_margin", sa.LargeBinary, nullable=False, server_default=EMPTY),
        sa.PrimaryKeyConstraint(*key, name=f"{name}_key"),
    )


def _take_over(name: str, then: str = "") -> None:
    """Put a table in the place of the present one, with its rows."""
    columns = (
        "organisation_id, response_id, decision_id, attempt_id, target, at, pending, polled_at, "
        "charge, price, margin, reserved, baseline, baseline_margin"
    )
    # SQLite takes ON CONFLICT for part of a join unless something stands before it.
    op.execute(f"INSERT INTO {name} ({columns}) SELECT {columns} FROM {TABLE} WHERE true {then}")
    op.drop_table(TABLE)
    op.rename_table(name, TABLE)
    op.create_index("stored_response_at", TABLE, ["at"])
    op.create_index(
        "stored_response_pending",
        TABLE,
        ["polled_at"],
        # As the dialect writes the condition: an index of another wording is not used.
        sqlite_where=sa.text("pending = 1"),
        postgresql_where=sa.text("pending"),
    )
