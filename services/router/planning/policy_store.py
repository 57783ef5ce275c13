"""The routing policies of organisations. One row for each organisation that has its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.db import Database
from services.router.domain.routing import RoutingPolicy

metadata = sa.MetaData()
policies = sa.Table(
    "routing_policies",
    metadata,
    sa.Column("organisation_id", sa.String(64), primary_key=True),
    sa.Column("version", sa.String(64), nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.Column("updated_by", sa.String(64), nullable=False),
)


class PolicyChangedError(Exception):
    """Somebody else has changed the policy."""

    reason = "CONFLICT"

    def __init__(self, expected: str, found: str) -> None:
        self.message = f"the policy's version is {found!r}, not {expected!r}; read it again"
        super().__init__(self.message)


@dataclass(frozen=True, slots=True)
class Change:
    """Who sets a policy, and when."""

    organisation_id: str
    version: str
    by: str
    at_ms: int


class PolicyStore:
    """Reads and writes the table."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> dict[str, RoutingPolicy]:
        """Return every policy by its organisation."""
        query = sa.select(policies.c.organisation_id, policies.c.version, policies.c.document)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return {
            row.organisation_id: RoutingPolicy.from_document(json.loads(row.document), row.version)
            for row in rows
        }

    async def put(self, change: Change, document: Mapping[str, Any], expected_version: str) -> None:
        """Replace a policy. Raises PolicyChangedError when it is not of the expected version."""
        values = {
            "version": change.version,
            "document": json.dumps(document),
            "updated_at": change.at_ms,
            "updated_by": change.by,
        }
        async with self._database.transaction() as connection:
            found = await self._version(connection, change.organisation_id)
            if expected_version and expected_version != (found or "default"):
                raise PolicyChangedError(expected_version, found or "default")
            if found is None:
                row = {"organisation_id": change.organisation_id, **values}
                await connection.execute(sa.insert(policies).values(row))
            else:
                own = policies.c.organisation_id == change.organisation_id
                await connection.execute(sa.update(policies).where(own).values(values))

    async def _version(self, connection: AsyncConnection, organisation_id: str) -> str | None:
        query = (
            sa.select(policies.c.version)
            .where(policies.c.organisation_id == organisation_id)
            .with_for_update()
        )
        found: str | None = await connection.scalar(query)
        return found

    async def delete(self, organisation_id: str) -> None:
        """Return an organisation to the default."""
        async with self._database.transaction() as connection:
            await connection.execute(sa.delete(policies).where(policies.c.organisation_id == organisation_id))
