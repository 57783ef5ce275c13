"""Keys: what becomes of streams that break."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_key", sa.Column("rescue", sa.String(16), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("api_key", "rescue")
