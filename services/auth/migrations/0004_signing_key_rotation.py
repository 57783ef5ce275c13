"""Signing keys: when they sign and when they retire."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("signing_key", sa.Column("signs_at", sa.DateTime(timezone=True)))
    op.add_column("signing_key", sa.Column("retires_at", sa.DateTime(timezone=True)))


def downgrade() -> None:
    op.drop_column("signing_key", "retires_at")
    op.drop_column("signing_key", "signs_at")
