"""The journal: one record for each request."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "journal",
        sa.Column("attempt_id", sa.String(64), primary_key=True),
        sa.Column("decision_id", sa.String(64), nullable=False, unique=True),
        sa.Column("organisation_id", sa.String(64), nullable=False),
        sa.Column("lease_id", sa.String(64), nullable=False),
        sa.Column("instance_id", sa.String(64), nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("decision", sa.LargeBinary, nullable=False),
        sa.Column("charge", sa.LargeBinary, nullable=False),
        sa.Column("settled", sa.Boolean, nullable=False),
    )
    op.create_index(
        "journal_unsettled",
        "journal",
        ["at"],
        # As the dialect writes the condition: an index of another wording is not used.
        sqlite_where=sa.text("settled = 0"),
        postgresql_where=sa.text("NOT settled"),
    )
    op.create_index("journal_at", "journal", ["at"])


def downgrade() -> None:
    op.drop_table("journal")
