"""Responses that providers keep: whose they are, and which are still to be paid."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "stored_response",
        sa.Column("organisation_id", sa.String(64), primary_key=True),
        sa.Column("response_id", sa.String(256), primary_key=True),
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
    )
    op.create_index("stored_response_at", "stored_response", ["at"])
    op.create_index(
        "stored_response_pending",
        "stored_response",
        ["polled_at"],
        # As the dialect writes the condition: an index of another wording is not used.
        sqlite_where=sa.text("pending = 1"),
        postgresql_where=sa.text("pending"),
    )


def downgrade() -> None:
    op.drop_table("stored_response")
