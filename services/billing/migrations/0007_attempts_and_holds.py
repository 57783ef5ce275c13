"""Differences name the provider's own attempt; holds draw on limits."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("difference", sa.Column("attempt_id", sa.String(300), nullable=False, server_default=""))
    is_open = sa.text("state = 'open'")
    op.create_index(
        "budget_slice_holder", "budget_slice", ["holder"], postgresql_where=is_open, sqlite_where=is_open
    )
