"""Workspaces and projects as they are stored."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.auth import tables
from services.auth.domain.place import Project, Workspace


class PlaceRecords:
    """The part of the records that is about places. Both kinds of place have unique names."""

    _connection: AsyncConnection

    async def add_workspace(self, workspace: Workspace) -> None:
        """Add a workspace. The transaction raises DuplicateError when the name is taken."""
        await self._connection.execute(sa.insert(tables.workspace).values(asdict(workspace)))

    async def add_project(self, project: Project) -> None:
        """Add a project. The transaction raises DuplicateError when the name is taken."""
        await self._connection.execute(sa.insert(tables.project).values(asdict(project)))

    async def workspace(
        self, organisation_id: str, workspace_id: str, *, lock: bool = False
    ) -> Workspace | None:
        """Return a workspace; with `lock` nothing is put into it meanwhile."""
        table = tables.workspace
        return _workspace(
            await self._place(table, organisation_id, table.c.workspace_id == workspace_id, lock)
        )

    async def workspace_named(self, organisation_id: str, name: str) -> Workspace | None:
        """Return a workspace by its name."""
        table = tables.workspace
        return _workspace(await self._place(table, organisation_id, table.c.name == name, lock=False))

    async def project(self, organisation_id: str, project_id: str, *, lock: bool = False) -> Project | None:
        """Return a project; with `lock` nothing is put into it meanwhile."""
        table = tables.project
        return _project(await self._place(table, organisation_id, table.c.project_id == project_id, lock))

    async def project_named(self, organisation_id: str, name: str) -> Project | None:
        """Return a project by its name."""
        table = tables.project
        return _project(await self._place(table, organisation_id, table.c.name == name, lock=False))

    async def _place(
        self, table: sa.Table, organisation_id: str, condition: sa.ColumnElement[bool], lock: bool
    ) -> Any:
        query = sa.select(table).where(table.c.organisation_id == organisation_id, condition)
        return (await self._connection.execute(query.with_for_update() if lock else query)).one_or_none()

    async def workspaces(self, organisation_id: str, after: str, limit: int) -> list[Workspace]:
        """Return workspaces of an organisation, by id."""
        table = tables.workspace
        query = sa.select(table).where(
            table.c.organisation_id == organisation_id, table.c.workspace_id > after
        )
        rows = await self._connection.execute(query.order_by(table.c.workspace_id).limit(limit))
        return [Workspace(**row._mapping) for row in rows]

    async def projects(self, organisation_id: str, after: str, limit: int) -> list[Project]:
        """Return projects of an organisation, by id."""
        table = tables.project
        query = sa.select(table).where(table.c.organisation_id == organisation_id, table.c.project_id > after)
        rows = await self._connection.execute(query.order_by(table.c.project_id).limit(limit))
        return [Project(**row._mapping) for row in rows]

    async def rename_workspace(self, workspace_id: str, name: str) -> None:
        """Give a workspace another name. The transaction raises DuplicateError when it is taken."""
        update = sa.update(tables.workspace).where(tables.workspace.c.workspace_id == workspace_id)
        await self._connection.execute(update.values(name=name))

    async def rename_project(self, project_id: str, name: str) -> None:
        """Give a project another name. The transaction raises DuplicateError when it is taken."""
        update = sa.update(tables.project).where(tables.project.c.project_id == project_id)
        await self._connection.execute(update.values(name=name))

    async def delete_workspace(self, workspace_id: str) -> None:
        """Remove a workspace."""
        table = tables.workspace
        await self._connection.execute(sa.delete(table).where(table.c.workspace_id == workspace_id))

    async def delete_project(self, project_id: str) -> None:
        """Remove a project."""
        await self._connection.execute(
            sa.delete(tables.project).where(tables.project.c.project_id == project_id)
        )

    async def workspace_in_use(self, workspace_id: str, now: datetime) -> bool:
        """Tell whether a workspace has projects, or keys that work."""
        inside = sa.select(tables.project.c.project_id).where(tables.project.c.workspace_id == workspace_id)
        return await self._any(inside) or await self._has_keys(
            tables.api_key.c.workspace_id == workspace_id, now
        )

    async def project_in_use(self, project_id: str, now: datetime) -> bool:
        """Tell whether a project has keys that work."""
        return await self._has_keys(tables.api_key.c.project_id == project_id, now)

    async def _has_keys(self, condition: sa.ColumnElement[bool], now: datetime) -> bool:
        key = tables.api_key
        working = sa.and_(
            key.c.revoked_at.is_(None), sa.or_(key.c.expires_at.is_(None), key.c.expires_at > now)
        )
        return await self._any(sa.select(key.c.key_id).where(condition, working))

    async def _any(self, query: sa.Select[Any]) -> bool:
        return (await self._connection.execute(query.limit(1))).first() is not None


def _workspace(row: Any) -> Workspace | None:
    return None if row is None else Workspace(**row._mapping)


def _project(row: Any) -> Project | None:
    return None if row is None else Project(**row._mapping)
