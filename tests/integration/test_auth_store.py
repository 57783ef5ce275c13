"""The auth service on both engines: start, races between replicas, what lies in the database."""

from __future__ import annotations

import asyncio
import hashlib
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa
from omnihub.auth.v1 import auth_service_pb2 as pb
from sqlalchemy.ext.asyncio import AsyncConnection

from services.auth import tables
from services.auth.app import MIGRATIONS
from services.auth.settings import AuthSettings
from services.common.change_feed import OVERLAP
from services.common.db import Database
from services.common.ids import new_id
from services.common.rpc.call import Call, Identity
from services.common.rpc.errors import RpcError
from services.common.service import StartupError
from tests.support.auth import BOOTSTRAP_KEY, FAST, PASSWORD, RunningAuth, build_auth, running_auth


@pytest.fixture
async def auth(database_url: str, tmp_path: Path) -> AsyncIterator[RunningAuth]:
    settings = AuthSettings(registration="open", login_failures_limit=5, **FAST)
    async with running_auth(database_url, tmp_path, settings=settings) as running:
        yield running


@pytest.fixture
async def replicas(database_url: str, tmp_path: Path) -> AsyncIterator[list[RunningAuth]]:
    """Three services on one database, as three processes would be."""
    settings = AuthSettings(login_failures_limit=5, **FAST)
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(running_auth(database_url, tmp_path, settings=settings))
            for _ in range(3)
        ]


def reasons(outcomes: list[object]) -> list[str]:
    """Return OK or the reason of each outcome, sorted."""
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, RpcError):
            raise outcome
    return sorted(outcome.reason if isinstance(outcome, RpcError) else "OK" for outcome in outcomes)


@pytest.mark.new_database
async def test_the_migrations_make_the_tables(database_url: str) -> None:
    database = Database(database_url, "auth")
    await database.migrate(MIGRATIONS)
    await database.migrate(MIGRATIONS)

    def columns(connection: sa.Connection) -> dict[str, set[tuple[str, bool]]]:
        inspector = sa.inspect(connection)
        schema = None if database.sqlite else "auth"
        return {
            table: {(column["name"], column["nullable"]) for column in inspector.get_columns(table, schema)}
            for table in inspector.get_table_names(schema)
            if table != "alembic_version"
        }

    async with database.reading() as connection:
        found = await connection.run_sync(columns)
    await database.close()
    assert found == {
        table.name: {(column.name, column.nullable) for column in table.columns}
        for table in tables.metadata.tables.values()
    }


async def test_replicas_that_start_at_once_make_one_first_organisation(
    database_url: str, tmp_path: Path
) -> None:
    folders = [tmp_path / str(number) for number in range(4)]
    services = [build_auth(database_url or "", folder, bootstrap_api_key=None) for folder in folders]
    await asyncio.gather(*(service.start() for service in services))
    announcements = [line for service in services for line in service.announce()]
    written = [folder / "bootstrap-key" for folder in folders if (folder / "bootstrap-key").exists()]
    # The losers' keys were never committed, so their files may not stay either.
    assert len(announcements) == 1
    assert len(written) == 1
    secret = written[0].read_text().strip()
    assert announcements[0].endswith(secret)
    for service in services:
        (_, server), *_ = service.interfaces
        answer = await server.exchange_credential(
            pb.ExchangeCredentialRequest(credential=secret), Call.internal()
        )
        assert "platform" in answer.identity.scopes
        listed = await server.sync_organisations(pb.SyncOrganisationsRequest(), Call.internal())
        assert len(listed.organisations) == 1
        await service.stop()


async def test_a_generated_key_is_written_for_its_owner_only_and_said_once(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_auth(database_url, tmp_path, bootstrap_api_key=None) as auth:
        file = tmp_path / "bootstrap-key"
        secret = file.read_text().strip()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert [secret in line for line in auth.service.announce()] == [True]
        await auth.exchange(secret)
    async with running_auth(database_url, tmp_path, bootstrap_api_key=None) as auth:
        assert file.read_text().strip() == secret
        assert auth.service.announce() == ()
        await auth.exchange(secret)
    assert secret not in caplog.text


async def test_a_given_bootstrap_key_counts_at_the_first_start_only(
    database_url: str, tmp_path: Path
) -> None:
    async with running_auth(database_url, tmp_path) as auth:
        await auth.exchange(BOOTSTRAP_KEY)
        assert auth.service.announce() == ()
        assert not (tmp_path / "bootstrap-key").exists()
    later = "omni_sk_another-key-0123456789-0123456789"
    async with running_auth(database_url, tmp_path, bootstrap_api_key=later) as auth:
        await auth.exchange(BOOTSTRAP_KEY)
        with pytest.raises(RpcError, match="INVALID_CREDENTIAL"):
            await auth.exchange(later)


@pytest.mark.parametrize("secret", ["sk-123", "omni_sk_", "omni_sk_with blank"])
def test_a_bootstrap_key_that_cannot_be_one_stops_the_start(secret: str, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="OMNIHUB_BOOTSTRAP_API_KEY must start with omni_sk_"):
        build_auth("", tmp_path, bootstrap_api_key=secret)


def test_a_weak_bootstrap_key_is_said_to_be_weak(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build_auth("", tmp_path, bootstrap_api_key="omni_sk_short")
    assert "bootstrap_api_key_is_weak" in caplog.text
    assert "omni_sk_short" not in caplog.text


async def _count(connection: AsyncConnection, table: sa.Table) -> int:
    return await connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0


async def test_no_secret_lies_in_the_database(auth: RunningAuth, database_url: str) -> None:
    platform = await auth.platform()
    created = await auth.create_key(platform)
    invitation = await auth.invite(platform)
    await auth.register("ada@example.org")
    database = Database(database_url, "auth")
    async with database.reading() as connection:
        rows = [
            str(row)
            for table in tables.metadata.tables.values()
            for row in (await connection.execute(sa.select(table))).all()
        ]
    await database.close()
    everything = "\n".join(rows)
    for secret in (BOOTSTRAP_KEY, created.secret, invitation, PASSWORD):
        assert secret not in everything
    assert hashlib.sha256(created.secret.encode()).hexdigest() in everything
    assert "$argon2id$" in everything


async def test_an_invitation_is_used_once_however_many_try(replicas: list[RunningAuth]) -> None:
    first = replicas[0]
    invitation = await first.invite(await first.platform())
    attempts = [
        replica.register(f"person{number}@example.org", invitation)
        for number, replica in enumerate(replicas * 2)
    ]
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    assert reasons(outcomes) == ["OK"] + ["REGISTRATION_CLOSED"] * 5
    members = await first.client.list_members(pb.ListMembersRequest(), await first.platform())
    assert len(members.members) == 1


async def test_an_email_is_registered_once_however_many_try(replicas: list[RunningAuth]) -> None:
    platform = await replicas[0].platform()
    invitations = [await replicas[0].invite(platform) for _ in range(3)]
    spellings = ("ada@example.org", "Ada@example.org", "ADA@EXAMPLE.ORG")
    attempts = [
        replica.register(email, invitation)
        for replica, email, invitation in zip(replicas, spellings, invitations, strict=True)
    ]
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    assert reasons(outcomes) == ["ALREADY_EXISTS", "ALREADY_EXISTS", "OK"]


async def test_the_same_request_for_a_key_makes_one_key(replicas: list[RunningAuth]) -> None:
    platform = await replicas[0].platform()
    answers = await asyncio.gather(
        *(replica.create_key(platform, idempotency_key="once") for replica in replicas * 2)
    )
    assert len({answer.key.key_id for answer in answers}) == 1
    assert len([answer for answer in answers if answer.secret]) == 1


async def test_two_owners_who_step_down_at_once_leave_one(replicas: list[RunningAuth]) -> None:
    first = replicas[0]
    ada = await first.join("ada@example.org", "owner")
    grace = await first.join("grace@example.org", "owner")
    steps = [
        replica.client.update_member(
            pb.UpdateMemberRequest(user_id=person.user.user_id, role="member"),
            await first.call_as(person.access_token),
        )
        for replica, person in zip(replicas, (ada, grace), strict=False)
    ]
    outcomes = await asyncio.gather(*steps, return_exceptions=True)
    assert reasons(outcomes) == ["OK", "PRECONDITION_FAILED"]


async def test_guesses_made_at_once_are_all_counted(replicas: list[RunningAuth]) -> None:
    first = replicas[0]
    await first.join("ada@example.org")
    attempts = [replica.login("ada@example.org", "wrong") for replica in replicas * 4]
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    assert reasons(outcomes) == ["INVALID_CREDENTIAL"] * 5 + ["RATE_LIMITED"] * 7


async def test_attempts_of_the_past_are_forgotten(auth: RunningAuth, database_url: str) -> None:
    database = Database(database_url, "auth")
    for number in range(3):
        with pytest.raises(RpcError, match="INVALID_CREDENTIAL"):
            await auth.login(f"nobody{number}@example.org")
    async with database.reading() as connection:
        assert await _count(connection, tables.login_failure) == 3
    auth.clock.move(901)
    with pytest.raises(RpcError, match="INVALID_CREDENTIAL"):
        await auth.login("nobody@example.org")
    async with database.reading() as connection:
        assert await _count(connection, tables.login_failure) == 1
    await database.close()


async def test_a_stronger_setting_reaches_old_passwords_at_the_next_login(
    database_url: str, tmp_path: Path
) -> None:
    async def stored() -> str:
        database = Database(database_url, "auth")
        async with database.reading() as connection:
            password_hash = await connection.scalar(sa.select(tables.user.c.password_hash))
        await database.close()
        return str(password_hash)

    async with running_auth(database_url, tmp_path) as auth:
        await auth.join("ada@example.org")
    assert "t=2," in await stored()
    stronger = AuthSettings(password_memory_kib=19456, password_passes=3)
    async with running_auth(database_url, tmp_path, settings=stronger) as auth:
        await auth.login("ada@example.org")
        assert "t=3," in await stored()
        await auth.login("ada@example.org")


async def _signing_key(database_url: str) -> tuple[bytes, bool]:
    database = Database(database_url, "auth")
    async with database.reading() as connection:
        row = (await connection.execute(sa.select(tables.signing_key))).one()
    await database.close()
    return row.private_key, row.sealed


async def test_signing_keys_are_sealed_with_the_master_key(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_auth(database_url, tmp_path) as auth:
        token = (await auth.join("ada@example.org")).access_token
    assert caplog.text.count("signing_key_stored_in_the_clear") == 1
    raw, sealed = await _signing_key(database_url)
    assert not sealed
    async with running_auth(database_url, tmp_path) as auth:
        await auth.exchange(token)
    assert caplog.text.count("signing_key_stored_in_the_clear") == 1
    for _ in range(2):
        async with running_auth(database_url, tmp_path, master_key="master") as auth:
            await auth.exchange(token)
    stored, sealed = await _signing_key(database_url)
    assert sealed
    assert raw not in stored
    for master_key, message in ((None, "set OMNIHUB_MASTER_KEY"), ("wrong", "is not the key")):
        service = build_auth(database_url, tmp_path, master_key=master_key)
        with pytest.raises(StartupError, match=message):
            await service.start()
        await service.stop()


async def test_a_key_made_with_a_master_key_is_sealed_at_once(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_auth(database_url, tmp_path, master_key="master"):
        assert (await _signing_key(database_url))[1]
    assert "signing_key_stored_in_the_clear" not in caplog.text


async def test_open_registration_makes_an_organisation_that_sees_only_itself(auth: RunningAuth) -> None:
    platform = await auth.platform()
    theirs = await auth.create_key(platform)
    member = await auth.join("member@example.org")
    stranger = await auth.register("ada@example.org")
    call = await auth.call_as(stranger.access_token)
    assert call.identity.role == "owner"
    me = await auth.client.get_me(pb.GetMeRequest(), call)
    assert (me.organisation.name, me.organisation.bootstrap) == ("ada@example.org", False)
    client, key_id, user_id = auth.client, theirs.key.key_id, member.user.user_id
    for attempt in (
        client.rotate_api_key(pb.RotateApiKeyRequest(key_id=key_id), call),
        client.revoke_api_key(pb.RevokeApiKeyRequest(key_id=key_id), call),
        client.update_member(pb.UpdateMemberRequest(user_id=user_id, role="viewer"), call),
        client.remove_member(pb.RemoveMemberRequest(user_id=user_id), call),
        auth.login("ada@example.org", organisation_id=platform.identity.organisation_id),
    ):
        with pytest.raises(RpcError, match="NOT_FOUND"):
            await attempt
    assert not (await client.list_api_keys(pb.ListApiKeysRequest(), call)).keys
    members = (await client.list_members(pb.ListMembersRequest(), call)).members
    assert [found.user.email for found in members] == ["ada@example.org"]
    found = (await client.list_organisations(pb.ListOrganisationsRequest(), call)).organisations
    assert [organisation.name for organisation in found] == ["ada@example.org"]


async def test_a_caller_of_no_organisation_reaches_nothing(auth: RunningAuth) -> None:
    for identity in (Identity(), Identity(organisation_id="org_gone", scopes=frozenset({"admin", "chat"}))):
        call = Call(new_id("req"), identity)
        with pytest.raises(RpcError, match="NOT_FOUND"):
            await auth.client.get_me(pb.GetMeRequest(), call)
        with pytest.raises(RpcError, match="NOT_FOUND"):
            await auth.invite(call)
        with pytest.raises(RpcError, match=r"PERMISSION_DENIED|NOT_FOUND"):
            await auth.create_key(call, scopes=["chat"])
        assert not (await auth.client.list_organisations(pb.ListOrganisationsRequest(), call)).organisations


async def test_sync_after_a_position_lists_what_came_later(auth: RunningAuth) -> None:
    first = await auth.client.sync_organisations(pb.SyncOrganisationsRequest(), Call.internal())
    platform = await auth.platform()
    # Beyond the margin for transactions that commit late, an old organisation is not listed again.
    request = pb.CreateApiKeyRequest(name="many")
    for _ in range(OVERLAP + 1):
        await auth.client.create_api_key(request, platform)
    middle = await auth.client.sync_organisations(pb.SyncOrganisationsRequest(), Call.internal())
    assert len(middle.organisations) == 1
    assert middle.seq > first.seq
    await auth.register("ada@example.org")
    after = await auth.client.sync_organisations(
        pb.SyncOrganisationsRequest(after_seq=middle.seq), Call.internal()
    )
    assert [organisation.name for organisation in after.organisations] == ["ada@example.org"]


async def test_the_check_reaches_the_database(auth: RunningAuth) -> None:
    await auth.service.check()
