"""Serves omnihub.auth.v1.WorkspaceService: message in, answer of the service's parts, message out."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp
from omnihub.auth.v1 import workspace_service_pb2 as pb

from services.auth.domain.place import Project, Workspace
from services.auth.places import Places
from services.common.page_token import decode_page_token, encode_page_token
from services.common.rpc.call import Call

DEFAULT_PAGE_SIZE = 100


class PlaceServer:
    """Translates messages, nothing else."""

    def __init__(self, places: Places) -> None:
        self._places = places

    async def create_workspace(
        self, request: pb.CreateWorkspaceRequest, call: Call
    ) -> pb.CreateWorkspaceResponse:
        """See the contract."""
        made = await self._places.create_workspace(call.identity, request.name)
        return pb.CreateWorkspaceResponse(workspace=_workspace(made))

    async def list_workspaces(
        self, request: pb.ListWorkspacesRequest, call: Call
    ) -> pb.ListWorkspacesResponse:
        """See the contract."""
        size = request.page_size or DEFAULT_PAGE_SIZE
        found = await self._places.workspaces(call.identity, _start(request.page_token), size + 1)
        token = encode_page_token(found[size - 1].workspace_id) if len(found) > size else ""
        workspaces = [_workspace(each) for each in found[:size]]
        return pb.ListWorkspacesResponse(workspaces=workspaces, next_page_token=token)

    async def rename_workspace(
        self, request: pb.RenameWorkspaceRequest, call: Call
    ) -> pb.RenameWorkspaceResponse:
        """See the contract."""
        renamed = await self._places.rename_workspace(call.identity, request.workspace_id, request.name)
        return pb.RenameWorkspaceResponse(workspace=_workspace(renamed))

    async def delete_workspace(
        self, request: pb.DeleteWorkspaceRequest, call: Call
    ) -> pb.DeleteWorkspaceResponse:
        """See the contract."""
        await self._places.delete_workspace(call.identity, request.workspace_id)
        return pb.DeleteWorkspaceResponse()

    async def create_project(self, request: pb.CreateProjectRequest, call: Call) -> pb.CreateProjectResponse:
        """See the contract."""
        made = await self._places.create_project(call.identity, request.name, request.workspace_id)
        return pb.CreateProjectResponse(project=_project(made))

    async def list_projects(self, request: pb.ListProjectsRequest, call: Call) -> pb.ListProjectsResponse:
        """See the contract."""
        size = request.page_size or DEFAULT_PAGE_SIZE
        found = await self._places.projects(call.identity, _start(request.page_token), size + 1)
        token = encode_page_token(found[size - 1].project_id) if len(found) > size else ""
        projects = [_project(each) for each in found[:size]]
        return pb.ListProjectsResponse(projects=projects, next_page_token=token)

    async def rename_project(self, request: pb.RenameProjectRequest, call: Call) -> pb.RenameProjectResponse:
        """See the contract."""
        renamed = await self._places.rename_project(call.identity, request.project_id, request.name)
        return pb.RenameProjectResponse(project=_project(renamed))

    async def delete_project(self, request: pb.DeleteProjectRequest, call: Call) -> pb.DeleteProjectResponse:
        """See the contract."""
        await self._places.delete_project(call.identity, request.project_id)
        return pb.DeleteProjectResponse()


def _start(page_token: str) -> str:
    return decode_page_token(page_token, 1)[0] if page_token else ""


def _timestamp(time: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(time)
    return message


def _workspace(workspace: Workspace) -> pb.Workspace:
    return pb.Workspace(
        workspace_id=workspace.workspace_id, name=workspace.name, created_at=_timestamp(workspace.created_at)
    )


def _project(project: Project) -> pb.Project:
    return pb.Project(
        project_id=project.project_id,
        name=project.name,
        workspace_id=project.workspace_id,
        created_at=_timestamp(project.created_at),
    )
