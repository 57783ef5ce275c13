"""Registered plugins.

Revision ID: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade():
    op.create_table(
        "plugin",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("address", sa.String(260), nullable=False),
        sa.Column("remote_provider", sa.String(128), nullable=False),
        sa.Column("tls", sa.Boolean, nullable=False),
        sa.Column("ca_certificate", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "changes",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("topic", sa.String(64), nullable=False),
        sa.Column("key", sa.String(256), nullable=False),
    )
