"""omnihub.auth.v1.WorkspaceService from its caller's side, and what keys take from it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from omnihub.auth.v1 import auth_service_pb2 as auth_pb
from omnihub.auth.v1 import workspace_service_pb2 as pb
from omnihub.auth.v1.workspace_service_api import WorkspaceService

from services.common.rpc import Call, Connector, Registry, RpcError
from tests.support.auth import RunningAuth, running_auth


@pytest.fixture
async def auth(database_url: str, tmp_path: Path) -> AsyncIterator[RunningAuth]:
    url = "" if database_url.startswith("sqlite") else database_url
    async with running_auth(url, tmp_path) as running:
        yield running


def places(auth: RunningAuth) -> Any:
    registry = Registry()
    for interface, implementation in auth.service.interfaces:
        registry.add(interface, implementation)
    return Connector(registry, {}).connect(WorkspaceService, "auth")


async def refused(awaitable: Any, reason: str) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await awaitable
    assert caught.value.reason == reason, caught.value
    return caught.value


async def test_workspaces(auth: RunningAuth) -> None:
    client, call = places(auth), await auth.platform()
    one = (await client.create_workspace(pb.CreateWorkspaceRequest(name="one"), call)).workspace
    again = (await client.create_workspace(pb.CreateWorkspaceRequest(name=" one "), call)).workspace
    assert again == one
    two = (await client.create_workspace(pb.CreateWorkspaceRequest(name="two"), call)).workspace
    page = await client.list_workspaces(pb.ListWorkspacesRequest(page_size=1), call)
    rest = await client.list_workspaces(pb.ListWorkspacesRequest(page_token=page.next_page_token), call)
    assert [*page.workspaces, *rest.workspaces] == [one, two]
    rename = pb.RenameWorkspaceRequest(workspace_id=two.workspace_id, name="one")
    await refused(client.rename_workspace(rename, call), "ALREADY_EXISTS")
    rename.name = "three"
    assert (await client.rename_workspace(rename, call)).workspace.name == "three"
    rename.workspace_id = "ws_none"
    await refused(client.rename_workspace(rename, call), "NOT_FOUND")
    await refused(client.create_workspace(pb.CreateWorkspaceRequest(name=" "), call), "INVALID_ARGUMENT")
    for _ in range(2):
        await client.delete_workspace(pb.DeleteWorkspaceRequest(workspace_id=two.workspace_id), call)


async def test_projects(auth: RunningAuth) -> None:
    client, call = places(auth), await auth.platform()
    workspace = (await client.create_workspace(pb.CreateWorkspaceRequest(name="w"), call)).workspace
    request = pb.CreateProjectRequest(name="p", workspace_id=workspace.workspace_id)
    project = (await client.create_project(request, call)).project
    assert (await client.create_project(request, call)).project == project
    await refused(client.create_project(pb.CreateProjectRequest(name="p"), call), "ALREADY_EXISTS")
    missing = pb.CreateProjectRequest(name="q", workspace_id="ws_none")
    await refused(client.create_project(missing, call), "NOT_FOUND")
    delete = pb.DeleteWorkspaceRequest(workspace_id=workspace.workspace_id)
    await refused(client.delete_workspace(delete, call), "PRECONDITION_FAILED")
    renamed = await client.rename_project(
        pb.RenameProjectRequest(project_id=project.project_id, name="r"), call
    )
    assert list((await client.list_projects(pb.ListProjectsRequest(), call)).projects) == [renamed.project]
    for _ in range(2):
        await client.delete_project(pb.DeleteProjectRequest(project_id=project.project_id), call)
    await client.delete_workspace(delete, call)


async def test_a_key_belongs_where_it_was_made_for(auth: RunningAuth) -> None:
    client, call = places(auth), await auth.platform()
    workspace = (await client.create_workspace(pb.CreateWorkspaceRequest(name="w"), call)).workspace
    other = (await client.create_workspace(pb.CreateWorkspaceRequest(name="v"), call)).workspace
    request = pb.CreateProjectRequest(name="p", workspace_id=workspace.workspace_id)
    project = (await client.create_project(request, call)).project
    made = await auth.create_key(call, project_id=project.project_id, scopes=["keys", "chat", "usage"])
    place = (workspace.workspace_id, project.project_id)
    assert (made.key.workspace_id, made.key.project_id) == place
    identity = (await auth.exchange(made.secret)).identity
    assert (identity.workspace_id, identity.project_id) == place
    own = await auth.call_as(made.secret)
    assert (own.identity.workspace_id, own.identity.project_id) == place
    # What it makes stays there, too.
    child = await auth.create_key(own)
    assert (child.key.workspace_id, child.key.project_id) == place
    await refused(auth.create_key(own, workspace_id=other.workspace_id), "PERMISSION_DENIED")
    wrong = auth.create_key(call, workspace_id=other.workspace_id, project_id=project.project_id)
    await refused(wrong, "PRECONDITION_FAILED")
    await refused(auth.create_key(call, workspace_id="ws_none"), "NOT_FOUND")
    await refused(auth.create_key(call, project_id="prj_none"), "NOT_FOUND")
    delete = pb.DeleteProjectRequest(project_id=project.project_id)
    await refused(client.delete_project(delete, call), "PRECONDITION_FAILED")
    for key in (made.key, child.key):
        await auth.client.revoke_api_key(auth_pb.RevokeApiKeyRequest(key_id=key.key_id), call)
    await client.delete_project(delete, call)


async def test_another_organisation_sees_none_of_it(auth: RunningAuth) -> None:
    client, call = places(auth), await auth.platform()
    workspace = (await client.create_workspace(pb.CreateWorkspaceRequest(name="w"), call)).workspace
    stranger = Call("req_1", type(call.identity)(organisation_id="org_other", scopes=frozenset({"admin"})))
    assert not (await client.list_workspaces(pb.ListWorkspacesRequest(), stranger)).workspaces
    rename = pb.RenameWorkspaceRequest(workspace_id=workspace.workspace_id, name="mine")
    await refused(client.rename_workspace(rename, stranger), "NOT_FOUND")
    await client.delete_workspace(pb.DeleteWorkspaceRequest(workspace_id=workspace.workspace_id), stranger)
    assert len((await client.list_workspaces(pb.ListWorkspacesRequest(), call)).workspaces) == 1
