"""Jobs know their project, so that its limits count them."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("project_id", sa.String(160), nullable=False, server_default=""))
