"""omnihub.auth.v1.AuthService from its caller's side, over both transports."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import jwt
import pytest
from omnihub.auth.v1 import auth_service_pb2 as pb

from services.auth.settings import AuthSettings
from services.common.authenticator import Authenticator
from services.common.rpc.call import Call
from services.common.rpc.errors import RpcError
from tests.support.auth import BOOTSTRAP_KEY, FAST, PASSWORD, RunningAuth, running_auth


@pytest.fixture(params=["local", "remote"])
async def auth(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RunningAuth]:
    settings = AuthSettings(
        login_failures_limit=3, login_failures_per_address_limit=4, login_window_s=600, **FAST
    )
    async with running_auth("", tmp_path, transport=request.param, settings=settings) as running:
        yield running


def segment(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


async def refused(awaitable: object, reason: str) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await awaitable  # type: ignore[misc]
    assert caught.value.reason == reason, caught.value
    return caught.value


async def test_the_bootstrap_key_holds_everything(auth: RunningAuth) -> None:
    answer = await auth.exchange(BOOTSTRAP_KEY)
    assert set(answer.identity.scopes) == {"chat", "usage", "keys", "admin", "platform"}
    assert answer.expires_in_s == 60
    assert list(answer.depends_on) == [answer.identity.key_id, answer.identity.organisation_id]
    me = await auth.client.get_me(pb.GetMeRequest(), await auth.platform())
    assert not me.HasField("user")
    assert me.organisation.bootstrap
    assert me.identity == answer.identity


async def test_the_identity_token_is_verified_with_the_published_keys(auth: RunningAuth) -> None:
    answer = await auth.exchange(BOOTSTRAP_KEY)
    keys = await auth.client.get_json_web_key_set(pb.GetJsonWebKeySetRequest(), Call.internal())
    [key] = keys.keys
    assert (key.kty, key.crv, key.alg, key.use) == ("OKP", "Ed25519", "EdDSA", "sig")
    claims = jwt.decode(
        answer.identity_token,
        jwt.PyJWK({"kty": key.kty, "crv": key.crv, "x": key.x, "kid": key.kid, "alg": key.alg}),
        algorithms=["EdDSA"],
        audience="omnihub-internal",
        issuer="omnihub",
    )
    assert 59 <= claims["exp"] - claims["iat"] <= 61
    identity = await Authenticator(auth.client).verify(answer.identity_token)
    assert identity.key_id == answer.identity.key_id
    assert identity.scopes == set(answer.identity.scopes)


async def test_a_person_registers_with_an_invitation_and_logs_in(auth: RunningAuth) -> None:
    platform = await auth.platform()
    registered = await auth.register("Ada@Example.org", await auth.invite(platform, "member"))
    assert registered.user.email == "ada@example.org"
    login = await auth.login("ADA@example.ORG")
    assert (login.token_type, login.expires_in_s, login.user) == ("Bearer", 3600, registered.user)
    for token in (registered.access_token, login.access_token):
        answer = await auth.exchange(token)
        assert answer.identity.user_id == registered.user.user_id
        assert answer.identity.role == "member"
        assert set(answer.identity.scopes) == {"chat", "usage", "keys", "cache"}
        assert answer.identity.organisation_id == platform.identity.organisation_id
        assert list(answer.depends_on) == [registered.user.user_id, platform.identity.organisation_id]
    me = await auth.client.get_me(pb.GetMeRequest(), await auth.call_as(login.access_token))
    assert me.user == registered.user


async def test_registration_needs_a_valid_invitation_for_that_email_once(auth: RunningAuth) -> None:
    platform = await auth.platform()
    await refused(auth.register("ada@example.org"), "REGISTRATION_CLOSED")
    await refused(auth.register("ada@example.org", "omni_inv_guess"), "REGISTRATION_CLOSED")
    personal = await auth.invite(platform, email="Grace@example.org")
    await refused(auth.register("ada@example.org", personal), "REGISTRATION_CLOSED")
    # The refusal did not use it up.
    await auth.register("grace@example.org", personal)
    await refused(auth.register("grace2@example.org", personal), "REGISTRATION_CLOSED")
    late = await auth.invite(platform)
    auth.clock.move(7 * 24 * 3600)
    await refused(auth.register("ada@example.org", late), "REGISTRATION_CLOSED")


async def test_an_email_registers_once_and_the_invitation_survives(auth: RunningAuth) -> None:
    platform = await auth.platform()
    await auth.join("ada@example.org")
    invitation = await auth.invite(platform)
    await refused(auth.register("ADA@example.org", invitation), "ALREADY_EXISTS")
    await auth.register("grace@example.org", invitation)


async def test_a_wrong_login_never_says_what_was_wrong(auth: RunningAuth) -> None:
    await auth.join("ada@example.org")
    messages = set()
    for email, password in (
        ("ada@example.org", "wrong"),
        ("nobody@example.org", PASSWORD),
        ("' OR 1=1 --", PASSWORD),
        ("nul\0@example.org", PASSWORD),
        ("ada@example.org", "\0"),
        ("", ""),
    ):
        messages.add(str(await refused(auth.login(email, password), "INVALID_CREDENTIAL")))
    assert len(messages) == 1


async def test_failed_logins_are_limited_per_email(auth: RunningAuth) -> None:
    await auth.join("ada@example.org")
    for email in ("ada@example.org", "ADA@example.org ", "ada@example.org"):
        await refused(auth.login(email, "wrong"), "INVALID_CREDENTIAL")
    error = await refused(auth.login("ada@example.org"), "RATE_LIMITED")
    assert error.retry_after_s == pytest.approx(600, abs=1)
    # Someone unknown is limited the same way, and nobody else is.
    for _ in range(3):
        await refused(auth.login("nobody@example.org", "wrong"), "INVALID_CREDENTIAL")
    await refused(auth.login("nobody@example.org", "wrong"), "RATE_LIMITED")
    await auth.join("grace@example.org")
    await auth.login("grace@example.org")
    auth.clock.move(600)
    await auth.login("ada@example.org")


async def test_guesses_for_many_emails_from_one_address_are_limited(auth: RunningAuth) -> None:
    await auth.join("ada@example.org")
    for number in range(4):
        # The owner of an account gains nothing by logging in between the guesses.
        await auth.login("ada@example.org", client_address="203.0.113.7")
        guess = auth.login(f"somebody{number}@example.org", "Summer2026", client_address="203.0.113.7")
        await refused(guess, "INVALID_CREDENTIAL")
    error = await refused(auth.login("ada@example.org", client_address="203.0.113.7"), "RATE_LIMITED")
    assert error.retry_after_s == pytest.approx(600, abs=1)
    assert "your address" in error.message
    # What was refused was no guess: it counts for nobody.
    for _ in range(3):
        await refused(auth.login("grace@example.org", "x", client_address="203.0.113.7"), "RATE_LIMITED")
    await refused(auth.login("grace@example.org", "x", client_address="203.0.113.8"), "INVALID_CREDENTIAL")
    await auth.login("ada@example.org", client_address="203.0.113.8")
    auth.clock.move(600)
    await auth.login("ada@example.org", client_address="203.0.113.7")


async def test_an_email_under_attack_does_not_use_up_an_address(auth: RunningAuth) -> None:
    await auth.join("ada@example.org")
    for _ in range(3):
        await refused(
            auth.login("grace@example.org", "x", client_address="203.0.113.7"), "INVALID_CREDENTIAL"
        )
    for _ in range(10):
        await refused(auth.login("grace@example.org", "x", client_address="203.0.113.7"), "RATE_LIMITED")
    await auth.login("ada@example.org", client_address="203.0.113.7")


async def test_a_network_of_ipv6_counts_as_one_address(auth: RunningAuth) -> None:
    for number in range(4):
        address = f"2001:db8:0:1::{number:x}"
        await refused(
            auth.login(f"somebody{number}@example.org", "x", client_address=address), "INVALID_CREDENTIAL"
        )
    await refused(auth.login("x@example.org", "x", client_address="2001:db8:0:1:ffff::"), "RATE_LIMITED")
    await refused(auth.login("x@example.org", "x", client_address="2001:db8:0:2::"), "INVALID_CREDENTIAL")


async def test_an_email_that_looks_like_an_address_is_not_one(auth: RunningAuth) -> None:
    for _ in range(3):
        await refused(auth.login("address:203.0.113.7", "x"), "INVALID_CREDENTIAL")
    await refused(auth.login("address:203.0.113.7", "x"), "RATE_LIMITED")
    for number in range(4):
        guess = auth.login(f"somebody{number}@example.org", "x", client_address="203.0.113.7")
        await refused(guess, "INVALID_CREDENTIAL")


async def test_a_login_that_succeeds_forgets_the_failures(auth: RunningAuth) -> None:
    await auth.join("ada@example.org")
    for _ in range(3):
        await refused(auth.login("ada@example.org", "wrong"), "INVALID_CREDENTIAL")
        await refused(auth.login("ada@example.org", "wrong"), "INVALID_CREDENTIAL")
        await auth.login("ada@example.org")


async def test_a_login_names_an_organisation_of_the_person(auth: RunningAuth) -> None:
    await auth.join("ada@example.org")
    platform = await auth.platform()
    login = await auth.login("ada@example.org", organisation_id=platform.identity.organisation_id)
    assert login.access_token
    await refused(auth.login("ada@example.org", organisation_id="org_other"), "NOT_FOUND")


async def test_access_tokens_expire(auth: RunningAuth) -> None:
    token = (await auth.join("ada@example.org")).access_token
    auth.clock.move(3590)
    assert (await auth.exchange(token)).expires_in_s <= 10
    auth.clock.move(10)
    await refused(auth.exchange(token), "INVALID_CREDENTIAL")


async def test_hostile_credentials_are_simply_invalid(auth: RunningAuth) -> None:
    for credential in (
        "omni_sk_unknown",
        "omni_sk_' OR '1'='1",
        "omni_sk_\0",
        "omni_sk_ключ🔑",
        "omni_sk_" + "a" * 8000,
        "'; DROP TABLE api_key; --",
        "\0\0\0",
        "ключ🔑",
        "a.b.c",
        "null",
        "W10.W10.W10",
        *(
            f"{segment({'alg': 'EdDSA'})}.{segment({'iss': issuer})}.AA"
            for issuer in ("omnihub", ["omnihub"], {})
        ),
        "a" * 8192,
    ):
        await refused(auth.exchange(credential), "INVALID_CREDENTIAL")


async def test_oversized_credentials_are_refused(auth: RunningAuth) -> None:
    with pytest.raises(RpcError) as caught:
        await auth.exchange("omni_sk_" + "a" * 100_000)
    # Over the wire the contract's own limit answers first.
    assert caught.value.reason in ("INVALID_CREDENTIAL", "INVALID_ARGUMENT")


async def test_unknown_revoked_and_expired_keys_are_answered_alike(auth: RunningAuth) -> None:
    platform = await auth.platform()
    revoked = await auth.create_key(platform)
    expired = await auth.create_key(platform, expires_in_s=5)
    await auth.client.revoke_api_key(pb.RevokeApiKeyRequest(key_id=revoked.key.key_id), platform)
    auth.clock.move(5)
    answers = {
        str(await refused(auth.exchange(secret), "INVALID_CREDENTIAL"))
        for secret in ("omni_sk_unknown", revoked.secret, expired.secret)
    }
    assert len(answers) == 1


async def test_a_key_is_created_shown_once_and_listed(auth: RunningAuth) -> None:
    platform = await auth.platform()
    created = await auth.create_key(platform, name="Ключ", allowed_models=["m1"], expires_in_s=3600)
    assert created.secret.startswith("omni_sk_")
    assert created.key.hint == created.secret[-4:]
    assert list(created.key.scopes) == ["chat", "usage"]
    assert created.key.expires_at.seconds - created.key.created_at.seconds == 3600
    identity = (await auth.exchange(created.secret)).identity
    assert list(identity.allowed_models) == ["m1"]
    listed = await auth.client.list_api_keys(pb.ListApiKeysRequest(), platform)
    assert listed.keys[0] == created.key
    assert [key.name for key in listed.keys] == ["Ключ", "bootstrap"]
    assert created.secret not in str(listed)


async def test_a_key_carries_its_policy_of_rescue(auth: RunningAuth) -> None:
    platform = await auth.platform()
    created = await auth.create_key(platform, name="k", rescue="off", idempotency_key="i1")
    assert created.key.rescue == "off"
    assert (await auth.exchange(created.secret)).identity.rescue == "off"
    assert (await auth.client.list_api_keys(pb.ListApiKeysRequest(), platform)).keys[0].rescue == "off"
    other = auth.create_key(platform, name="k", rescue="restart", idempotency_key="i1")
    await refused(other, "IDEMPOTENCY_KEY_REUSED")
    assert (await auth.create_key(platform)).key.rescue == ""


async def test_a_key_lives_no_longer_than_its_expiry(auth: RunningAuth) -> None:
    created = await auth.create_key(await auth.platform(), expires_in_s=20)
    assert (await auth.exchange(created.secret)).expires_in_s == 20
    auth.clock.move(19.5)
    assert (await auth.exchange(created.secret)).expires_in_s == 1


async def test_creating_a_key_is_idempotent(auth: RunningAuth) -> None:
    platform = await auth.platform()
    first = await auth.create_key(platform, idempotency_key="once", scopes=["chat", "usage"])
    again = await auth.create_key(platform, idempotency_key="once", scopes=["usage", "chat"])
    assert again.key == first.key
    assert not again.secret
    by_header = await auth.create_key(
        await auth.call_as(BOOTSTRAP_KEY, idempotency_key="once"), scopes=["chat", "usage"]
    )
    assert by_header.key == first.key
    await refused(
        auth.create_key(platform, idempotency_key="once", scopes=["chat"]), "IDEMPOTENCY_KEY_REUSED"
    )
    ada = await auth.call_as((await auth.join("ada@example.org")).access_token)
    await refused(
        auth.create_key(ada, idempotency_key="once", scopes=["chat", "usage"]), "IDEMPOTENCY_KEY_REUSED"
    )


async def test_nobody_gives_a_key_what_they_do_not_hold(auth: RunningAuth) -> None:
    member = await auth.call_as((await auth.join("ada@example.org")).access_token)
    error = await refused(auth.create_key(member, scopes=["admin"]), "PERMISSION_DENIED")
    assert error.metadata["scope"] == "admin"
    admin = await auth.call_as((await auth.join("grace@example.org", "admin")).access_token)
    await auth.create_key(admin, scopes=["admin"])
    await refused(auth.create_key(admin, scopes=["platform"]), "PERMISSION_DENIED")
    narrow = (await auth.create_key(admin, scopes=["chat", "usage", "keys"], allowed_models=["a"])).secret
    await refused(auth.create_key(await auth.call_as(narrow), allowed_models=["b"]), "PERMISSION_DENIED")
    inherited = await auth.create_key(await auth.call_as(narrow))
    assert list(inherited.key.allowed_models) == ["a"]


async def test_names_that_no_database_takes_are_refused(auth: RunningAuth) -> None:
    platform = await auth.platform()
    for fields in ({"name": "a\0"}, {"allowed_models": ["m\0"]}, {"idempotency_key": "i\0"}):
        error = await refused(auth.create_key(platform, **fields), "INVALID_ARGUMENT")
        assert [violation.field for violation in error.violations] == list(fields)
    await refused(
        auth.create_key(await auth.call_as(BOOTSTRAP_KEY, idempotency_key="i" * 129)), "INVALID_ARGUMENT"
    )


async def test_rotation_overlaps(auth: RunningAuth) -> None:
    platform = await auth.platform()
    created = await auth.create_key(platform)
    request = pb.RotateApiKeyRequest(key_id=created.key.key_id, overlap_s=30)
    rotated = await auth.client.rotate_api_key(request, platform)
    assert rotated.secret != created.secret
    assert rotated.key.hint == rotated.secret[-4:]
    assert (await auth.exchange(created.secret)).expires_in_s == 30
    assert (await auth.exchange(rotated.secret)).expires_in_s == 60
    auth.clock.move(30)
    await refused(auth.exchange(created.secret), "INVALID_CREDENTIAL")
    await auth.exchange(rotated.secret)


async def test_rotation_without_overlap_ends_the_old_secret_at_once(auth: RunningAuth) -> None:
    platform = await auth.platform()
    created = await auth.create_key(platform)
    request = pb.RotateApiKeyRequest(key_id=created.key.key_id)
    rotated = await auth.client.rotate_api_key(request, platform)
    await refused(auth.exchange(created.secret), "INVALID_CREDENTIAL")
    assert (await auth.exchange(rotated.secret)).identity.key_id == created.key.key_id
    assert not rotated.key.HasField("overlap_until")


async def test_a_revoked_key_is_not_rotated_and_revoking_twice_is_fine(auth: RunningAuth) -> None:
    platform = await auth.platform()
    created = await auth.create_key(platform)
    revoke = pb.RevokeApiKeyRequest(key_id=created.key.key_id)
    await auth.client.revoke_api_key(revoke, platform)
    await auth.client.revoke_api_key(revoke, platform)
    rotate = pb.RotateApiKeyRequest(key_id=created.key.key_id, overlap_s=5)
    await refused(auth.client.rotate_api_key(rotate, platform), "PRECONDITION_FAILED")


async def test_members_do_not_handle_the_keys_of_others(auth: RunningAuth) -> None:
    ada = await auth.call_as((await auth.join("ada@example.org")).access_token)
    grace = await auth.call_as((await auth.join("grace@example.org")).access_token)
    created = await auth.create_key(ada)
    key_id = created.key.key_id
    await refused(
        auth.client.rotate_api_key(pb.RotateApiKeyRequest(key_id=key_id), grace), "PERMISSION_DENIED"
    )
    await refused(
        auth.client.revoke_api_key(pb.RevokeApiKeyRequest(key_id=key_id), grace), "PERMISSION_DENIED"
    )
    await auth.exchange(created.secret)


async def test_unknown_ids_are_not_found(auth: RunningAuth) -> None:
    platform = await auth.platform()
    client = auth.client
    for name in ("key_unknown", "nonsense", "nul\0", "' OR 1=1"):
        await refused(client.rotate_api_key(pb.RotateApiKeyRequest(key_id=name), platform), "NOT_FOUND")
        await refused(client.revoke_api_key(pb.RevokeApiKeyRequest(key_id=name), platform), "NOT_FOUND")
        await refused(client.remove_member(pb.RemoveMemberRequest(user_id=name), platform), "NOT_FOUND")
        update = pb.UpdateMemberRequest(user_id=name, role="viewer")
        await refused(client.update_member(update, platform), "NOT_FOUND")


async def test_lists_come_in_pages(auth: RunningAuth) -> None:
    platform = await auth.platform()
    for number in range(4):
        await auth.create_key(platform, name=f"key {number}")
    for name in ("ada", "grace", "alan"):
        await auth.join(f"{name}@example.org")
    names, token = [], ""
    while True:
        page = await auth.client.list_api_keys(pb.ListApiKeysRequest(page_size=2, page_token=token), platform)
        names += [key.name for key in page.keys]
        token = page.next_page_token
        if not token:
            break
    assert names == ["key 3", "key 2", "key 1", "key 0", "bootstrap"]
    first = await auth.client.list_members(pb.ListMembersRequest(page_size=2), platform)
    request = pb.ListMembersRequest(page_size=2, page_token=first.next_page_token)
    second = await auth.client.list_members(request, platform)
    emails = [member.user.email for member in [*first.members, *second.members]]
    assert emails == ["ada@example.org", "grace@example.org", "alan@example.org"]
    assert (len(first.members), second.next_page_token) == (2, "")
    await refused(
        auth.client.list_api_keys(pb.ListApiKeysRequest(page_token="garbage"), platform), "INVALID_ARGUMENT"
    )


async def test_organisations_of_a_person_and_of_a_key(auth: RunningAuth) -> None:
    platform = await auth.platform()
    ada = await auth.call_as((await auth.join("ada@example.org")).access_token)
    for call in (platform, ada):
        found = await auth.client.list_organisations(pb.ListOrganisationsRequest(page_size=1), call)
        assert [organisation.bootstrap for organisation in found.organisations] == [True]
        assert not found.next_page_token


async def test_a_changed_role_changes_what_a_login_may_do(auth: RunningAuth) -> None:
    platform = await auth.platform()
    ada = await auth.join("ada@example.org", "admin")
    key = await auth.create_key(await auth.call_as(ada.access_token), scopes=["chat", "usage", "admin"])
    update = pb.UpdateMemberRequest(user_id=ada.user.user_id, role="viewer")
    member = (await auth.client.update_member(update, platform)).member
    assert (member.role, member.user) == ("viewer", ada.user)
    assert list((await auth.exchange(ada.access_token)).identity.scopes) == ["usage"]
    assert list((await auth.exchange(key.secret)).identity.scopes) == ["usage"]


async def test_a_removed_member_is_out_with_their_keys(auth: RunningAuth) -> None:
    platform = await auth.platform()
    ada = await auth.join("ada@example.org")
    key = await auth.create_key(await auth.call_as(ada.access_token))
    remove = pb.RemoveMemberRequest(user_id=ada.user.user_id)
    await auth.client.remove_member(remove, platform)
    await auth.client.remove_member(remove, platform)
    await refused(auth.exchange(ada.access_token), "INVALID_CREDENTIAL")
    await refused(auth.exchange(key.secret), "INVALID_CREDENTIAL")
    await refused(auth.login("ada@example.org"), "INVALID_CREDENTIAL")
    listed = await auth.client.list_members(pb.ListMembersRequest(), platform)
    assert not listed.members
    update = pb.UpdateMemberRequest(user_id=ada.user.user_id, role="viewer")
    await refused(auth.client.update_member(update, platform), "NOT_FOUND")


async def test_owners(auth: RunningAuth) -> None:
    owner = await auth.join("ada@example.org", "owner")
    as_owner = await auth.call_as(owner.access_token)
    admin = await auth.join("grace@example.org", "admin")
    as_admin = await auth.call_as(admin.access_token)

    def update(user_id: str, role: str) -> pb.UpdateMemberRequest:
        return pb.UpdateMemberRequest(user_id=user_id, role=role)

    client = auth.client
    await refused(client.update_member(update(admin.user.user_id, "owner"), as_admin), "PERMISSION_DENIED")
    await refused(client.update_member(update(owner.user.user_id, "member"), as_admin), "PERMISSION_DENIED")
    last = owner.user.user_id
    await refused(client.update_member(update(last, "admin"), as_owner), "PRECONDITION_FAILED")
    await refused(client.remove_member(pb.RemoveMemberRequest(user_id=last), as_owner), "PRECONDITION_FAILED")
    await client.update_member(update(admin.user.user_id, "owner"), as_owner)
    await client.update_member(update(last, "member"), as_owner)


async def test_sync_lists_organisations_and_the_position(auth: RunningAuth) -> None:
    first = await auth.client.sync_organisations(pb.SyncOrganisationsRequest(), Call.internal())
    assert [organisation.bootstrap for organisation in first.organisations] == [True]
    assert first.seq > 0


async def test_changes_are_streamed(auth: RunningAuth) -> None:
    platform = await auth.platform()
    created = await auth.create_key(platform)
    seen: set[tuple[str, str]] = set()
    stream = auth.client.watch_changes(pb.WatchChangesRequest(), Call.internal())
    async with asyncio.timeout(60), aclosing(stream) as answers:  # type: ignore[type-var]
        async for answer in answers:
            seen.update((change.topic, change.key) for change in answer.changes)
            if ("key", created.key.key_id) in seen:
                break
    assert ("organisation", platform.identity.organisation_id) in seen


async def _is_refused(authenticator: Authenticator, credential: str) -> bool:
    try:
        await authenticator.authenticate(credential)
    except RpcError as error:
        return error.reason == "INVALID_CREDENTIAL"
    return False


async def _lose(authenticator: Authenticator, credential: str) -> float:
    """Return after how many seconds `credential` is refused; asks the way an entry does."""
    started = time.monotonic()
    async with asyncio.timeout(6):
        while not await _is_refused(authenticator, credential):  # noqa: ASYNC110 - as requests arrive
            await asyncio.sleep(0.05)
    return time.monotonic() - started


async def test_a_revocation_is_seen_within_five_seconds(auth: RunningAuth) -> None:
    platform = await auth.platform()
    created = await auth.create_key(platform)
    ada = await auth.join("ada@example.org")
    authenticator = Authenticator(auth.client)
    await authenticator.start()
    try:
        for credential in (created.secret, ada.access_token):
            assert await authenticator.authenticate(credential)
        await auth.client.revoke_api_key(pb.RevokeApiKeyRequest(key_id=created.key.key_id), platform)
        await auth.client.remove_member(pb.RemoveMemberRequest(user_id=ada.user.user_id), platform)
        lost = await asyncio.gather(
            _lose(authenticator, created.secret), _lose(authenticator, ada.access_token)
        )
        assert max(lost) < 5
    finally:
        await authenticator.stop()
