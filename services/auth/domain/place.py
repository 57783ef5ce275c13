"""Workspaces and projects: where keys belong."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from services.auth.domain.errors import InvalidArgumentError, PermissionDeniedError, PreconditionFailedError
from services.auth.domain.text import check_text


@dataclass(frozen=True, slots=True)
class Workspace:
    """A part of an organisation."""

    workspace_id: str
    organisation_id: str
    name: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Project:
    """What work is done for; of a workspace, or with an empty `workspace_id` of the organisation itself."""

    project_id: str
    organisation_id: str
    workspace_id: str
    name: str
    created_at: datetime


class Placed(Protocol):
    """Whose credential belongs somewhere."""

    @property
    def workspace_id(self) -> str: ...  # noqa: D102
    @property
    def project_id(self) -> str: ...  # noqa: D102


def check_name(name: str) -> str:
    """Return a name as it is kept. Raises InvalidArgumentError."""
    name = check_text("name", name)
    if not name:
        raise InvalidArgumentError("name", "write a name")
    return name


def place_of(caller: Placed, workspace_id: str, project: Project | None) -> tuple[str, str]:
    """Return workspace and project of a new key of `caller`: never outside the caller's own place.

    Raises PermissionDeniedError, PreconditionFailedError.
    """
    project_id = project.project_id if project is not None else ""
    if project is not None and project.workspace_id:
        if workspace_id not in ("", project.workspace_id):
            raise PreconditionFailedError("the project is in another workspace: leave workspace_id out")
        workspace_id = project.workspace_id
    for kind, own, wanted in (
        ("workspace", caller.workspace_id, workspace_id),
        ("project", caller.project_id, project_id),
    ):
        if own and wanted not in ("", own):
            raise PermissionDeniedError(f"your key belongs to the {kind} {own}: a new key does, too")
    return workspace_id or caller.workspace_id, project_id or caller.project_id
