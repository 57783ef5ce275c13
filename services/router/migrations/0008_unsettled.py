"""What billing has to be told of is a row of its own: marking the record itself wrote all of it again."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "unsettled", sa.Column("attempt_id", sa.String(64), primary_key=True), sqlite_with_rowid=False
    )
    op.execute("INSERT INTO unsettled (attempt_id) SELECT attempt_id FROM journal WHERE NOT settled")
    op.drop_index("journal_unsettled", "journal")
    # A process from before this cannot write without it: its requests fail, and none is forgotten.
    op.drop_column("journal", "settled")


def downgrade() -> None:
    op.add_column("journal", sa.Column("settled", sa.Boolean, nullable=False, server_default=sa.true()))
    op.execute("UPDATE journal SET settled = FALSE WHERE attempt_id IN (SELECT attempt_id FROM unsettled)")
    op.create_index(
        "journal_unsettled",
        "journal",
        ["at"],
        sqlite_where=sa.text("settled = 0"),
        postgresql_where=sa.text("NOT settled"),
    )
    op.drop_table("unsettled")
