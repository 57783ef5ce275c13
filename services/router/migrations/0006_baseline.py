"""Answers in the background keep what they are compared with: their savings are known when they end."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("baseline", "baseline_margin"):
        op.add_column(
            "stored_response", sa.Column(name, sa.LargeBinary, nullable=False, server_default=sa.text("''"))
        )


def downgrade() -> None:
    for name in ("baseline", "baseline_margin"):
        op.drop_column("stored_response", name)
