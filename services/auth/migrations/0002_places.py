"""Workspaces and projects, and keys that belong to them.

Revision ID: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_ID = sa.String(80)
_TIME = sa.DateTime(timezone=True)


def upgrade():
    op.create_table(
        "workspace",
        sa.Column("workspace_id", _ID, primary_key=True),
        sa.Column("organisation_id", _ID, sa.ForeignKey("organisation.organisation_id"), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.UniqueConstraint("organisation_id", "name"),
    )
    op.create_table(
        "project",
        sa.Column("project_id", _ID, primary_key=True),
        sa.Column("organisation_id", _ID, sa.ForeignKey("organisation.organisation_id"), nullable=False),
        sa.Column("workspace_id", _ID, nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.UniqueConstraint("organisation_id", "name"),
    )
    for name in ("workspace_id", "project_id"):
        op.add_column("api_key", sa.Column(name, _ID, nullable=False, server_default=""))
        op.create_index(f"api_key_{name}", "api_key", [name])
