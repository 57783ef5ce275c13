"""Cloned voices are removed at their providers once their consent is revoked, also those revoked before."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("voice", sa.Column("state", sa.String(16), nullable=False, server_default="kept"))
    op.add_column("voice", sa.Column("attempts", sa.Integer, nullable=False, server_default="0"))
    op.add_column("voice", sa.Column("problem", sa.Text, nullable=False, server_default=""))
    revoked = "consent_id IN (SELECT id FROM consent WHERE revoked_at > 0)"
    op.execute(f"UPDATE voice SET state = 'removing' WHERE {revoked}")
    op.execute(
        "INSERT INTO outbox (queue, subject_id, due_at, created_at) "
        "SELECT 'voice.remove', id, created_at, created_at FROM voice WHERE state = 'removing'"
    )
