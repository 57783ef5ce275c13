"""A person of one organisation joins another, over both transports."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from omnihub.auth.v1 import auth_service_pb2 as pb

from services.auth.settings import AuthSettings
from services.common.rpc.call import Call
from services.common.rpc.errors import RpcError
from tests.support.auth import FAST, RunningAuth, running_auth


@pytest.fixture(params=["local", "remote"])
async def auth(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RunningAuth]:
    settings = AuthSettings(registration="open", **FAST)
    async with running_auth("", tmp_path, transport=request.param, settings=settings) as running:
        yield running


async def refused(awaitable: object, reason: str) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await awaitable  # type: ignore[misc]
    assert caught.value.reason == reason, caught.value
    return caught.value


async def another_organisation(auth: RunningAuth) -> Call:
    """Return the owner of an organisation of their own."""
    return await auth.call_as((await auth.register("owner@example.org")).access_token)


async def accept(auth: RunningAuth, invitation: str, call: Call) -> pb.AcceptInvitationResponse:
    return await auth.client.accept_invitation(pb.AcceptInvitationRequest(invitation=invitation), call)


async def test_a_person_joins_a_second_organisation_by_invitation(auth: RunningAuth) -> None:
    platform = await auth.platform()
    home = platform.identity.organisation_id
    ada = await auth.join("ada@example.org")
    at_home = await auth.call_as(ada.access_token)
    elsewhere = await another_organisation(auth)
    invitation = await auth.invite(elsewhere, "admin", email="ada@example.org")
    answer = await accept(auth, invitation, at_home)
    assert (answer.organisation.organisation_id, answer.role) == (elsewhere.identity.organisation_id, "admin")
    there = await auth.exchange(answer.access_token)
    assert there.identity.organisation_id == elsewhere.identity.organisation_id
    assert there.identity.role == "admin"
    assert (await auth.exchange(ada.access_token)).identity.organisation_id == home
    listed = await auth.client.list_organisations(pb.ListOrganisationsRequest(), at_home)
    assert {each.organisation_id for each in listed.organisations} == {home, there.identity.organisation_id}
    login = await auth.login("ada@example.org", organisation_id=elsewhere.identity.organisation_id)
    assert (await auth.exchange(login.access_token)).identity.role == "admin"


async def test_who_cannot_accept_does_not_use_the_invitation_up(auth: RunningAuth) -> None:
    platform = await auth.platform()
    ada = await auth.call_as((await auth.join("ada@example.org")).access_token)
    elsewhere = await another_organisation(auth)
    for_grace = await auth.invite(elsewhere, email="grace@example.org")
    await refused(accept(auth, for_grace, ada), "REGISTRATION_CLOSED")
    await refused(accept(auth, "omni_inv_guess", ada), "REGISTRATION_CLOSED")
    await refused(accept(auth, for_grace, platform), "PERMISSION_DENIED")
    key = await auth.create_key(ada)
    await refused(accept(auth, for_grace, await auth.call_as(key.secret)), "PERMISSION_DENIED")
    again = await auth.invite(platform)
    await refused(accept(auth, again, ada), "ALREADY_EXISTS")
    grace = await auth.call_as((await auth.register("grace@example.org", again)).access_token)
    await accept(auth, for_grace, grace)
    await refused(accept(auth, for_grace, grace), "REGISTRATION_CLOSED")


async def test_who_was_removed_may_be_invited_again(auth: RunningAuth) -> None:
    elsewhere = await another_organisation(auth)
    joined = await auth.join("ada@example.org")
    ada = await auth.call_as(joined.access_token)
    await accept(auth, await auth.invite(elsewhere, "admin"), ada)
    await auth.client.remove_member(pb.RemoveMemberRequest(user_id=joined.user.user_id), elsewhere)
    auth.clock.move(1)
    answer = await accept(auth, await auth.invite(elsewhere, "viewer"), ada)
    assert (await auth.exchange(answer.access_token)).identity.role == "viewer"
