"""Workspaces and projects: creating, listing, renaming, deleting."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from services.auth.domain.errors import AlreadyExistsError, NotFoundError, PreconditionFailedError
from services.auth.domain.place import Project, Workspace, check_name
from services.auth.domain.roles import Caller
from services.auth.domain.text import is_identifier
from services.auth.store import DuplicateError, Records, Store
from services.common.ids import new_id


class Places:
    """Looks after the workspaces and projects of organisations."""

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self._store = store
        self._now = now

    async def create_workspace(self, caller: Caller, name: str) -> Workspace:
        """Return the workspace of this name, new or not."""
        name = check_name(name)
        made = Workspace(new_id("ws"), caller.organisation_id, name, self._now())
        try:
            async with self._store.writing() as records:
                known = await records.workspace_named(caller.organisation_id, name)
                if known is None:
                    await records.add_workspace(made)
                return known or made
        except DuplicateError:
            # The same request arrived twice at once; by now the other one is stored.
            async with self._store.reading() as records:
                known = await records.workspace_named(caller.organisation_id, name)
            if known is None:
                raise
            return known

    async def create_project(self, caller: Caller, name: str, workspace_id: str) -> Project:
        """Return the project of this name, new or not. Raises NotFoundError, AlreadyExistsError."""
        name = check_name(name)
        made = Project(new_id("prj"), caller.organisation_id, workspace_id, name, self._now())
        try:
            async with self._store.writing() as records:
                if workspace_id:
                    await find_workspace(records, caller, workspace_id)
                known = await records.project_named(caller.organisation_id, name)
                if known is None:
                    await records.add_project(made)
        except DuplicateError:
            async with self._store.reading() as records:
                known = await records.project_named(caller.organisation_id, name)
            if known is None:
                raise
        if known is not None and known.workspace_id != workspace_id:
            raise AlreadyExistsError(f"the project {name!r} is in another workspace: choose another name")
        return known or made

    async def workspaces(self, caller: Caller, after: str, limit: int) -> list[Workspace]:
        """Return workspaces, by id."""
        async with self._store.reading() as records:
            return await records.workspaces(caller.organisation_id, after, limit)

    async def projects(self, caller: Caller, after: str, limit: int) -> list[Project]:
        """Return projects, by id."""
        async with self._store.reading() as records:
            return await records.projects(caller.organisation_id, after, limit)

    async def rename_workspace(self, caller: Caller, workspace_id: str, name: str) -> Workspace:
        """Return the workspace with its new name. Raises NotFoundError, AlreadyExistsError."""
        name = check_name(name)
        try:
            async with self._store.writing() as records:
                known = await find_workspace(records, caller, workspace_id)
                await records.rename_workspace(workspace_id, name)
        except DuplicateError:
            raise AlreadyExistsError(f"another workspace is called {name!r}: choose another name") from None
        return Workspace(known.workspace_id, known.organisation_id, name, known.created_at)

    async def rename_project(self, caller: Caller, project_id: str, name: str) -> Project:
        """Return the project with its new name. Raises NotFoundError, AlreadyExistsError."""
        name = check_name(name)
        try:
            async with self._store.writing() as records:
                known = await find_project(records, caller, project_id)
                await records.rename_project(project_id, name)
        except DuplicateError:
            raise AlreadyExistsError(f"another project is called {name!r}: choose another name") from None
        return Project(project_id, known.organisation_id, known.workspace_id, name, known.created_at)

    async def delete_workspace(self, caller: Caller, workspace_id: str) -> None:
        """Remove a workspace; one that is gone is fine. Raises PreconditionFailedError."""
        if not is_identifier(workspace_id):
            return
        async with self._store.writing() as records:
            known = await records.workspace(caller.organisation_id, workspace_id, lock=True)
            if known is None:
                return
            if await records.workspace_in_use(workspace_id, self._now()):
                raise PreconditionFailedError(
                    "the workspace still has projects or keys that work: delete and revoke those first"
                )
            await records.delete_workspace(workspace_id)

    async def delete_project(self, caller: Caller, project_id: str) -> None:
        """Remove a project; one that is gone is fine. Raises PreconditionFailedError."""
        if not is_identifier(project_id):
            return
        async with self._store.writing() as records:
            known = await records.project(caller.organisation_id, project_id, lock=True)
            if known is None:
                return
            if await records.project_in_use(project_id, self._now()):
                raise PreconditionFailedError("the project still has keys that work: revoke those first")
            await records.delete_project(project_id)


async def find_workspace(records: Records, caller: Caller, workspace_id: str) -> Workspace:
    """Return a workspace of the caller's organisation, locked. Raises NotFoundError."""
    known = None
    if is_identifier(workspace_id):
        known = await records.workspace(caller.organisation_id, workspace_id, lock=True)
    if known is None:
        raise NotFoundError("workspace", workspace_id)
    return known


async def find_project(records: Records, caller: Caller, project_id: str) -> Project:
    """Return a project of the caller's organisation, locked. Raises NotFoundError."""
    known = None
    if is_identifier(project_id):
        known = await records.project(caller.organisation_id, project_id, lock=True)
    if known is None:
        raise NotFoundError("project", project_id)
    return known
