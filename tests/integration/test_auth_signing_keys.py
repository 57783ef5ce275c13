"""The rotation of the keys that sign tokens, on both engines and with several replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import jwt
import pytest
import sqlalchemy as sa
from omnihub.auth.v1 import signing_key_service_pb2 as pb
from pydantic import ValidationError

from services.auth import tables
from services.auth.domain.signing_key import LONGEST_TOKEN_S
from services.auth.settings import AuthSettings
from services.common.db import Database
from services.common.rpc.call import Call
from services.common.rpc.errors import RpcError
from tests.support.auth import BOOTSTRAP_KEY, FAST, RunningAuth, running_auth

PUBLISH_S = 300
# The longest life of a token, and how far clocks may be apart.
RETIRING_S = PUBLISH_S + 86_400 + 60


@pytest.fixture
async def auth(database_url: str, tmp_path: Path) -> AsyncIterator[RunningAuth]:
    async with running_auth(database_url, tmp_path) as running:
        yield running


@pytest.fixture
async def replicas(database_url: str, tmp_path: Path) -> AsyncIterator[list[RunningAuth]]:
    """Two services on one database, as two processes would be."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(running_auth(database_url, tmp_path, master_key="master"))
            for _ in range(2)
        ]


def signed_by(token: str) -> str:
    """Return the id of the key that signed a token."""
    return str(jwt.get_unverified_header(token)["kid"])


async def identity_signed_by(auth: RunningAuth) -> str:
    return signed_by((await auth.exchange(BOOTSTRAP_KEY)).identity_token)


def states(keys: list[pb.SigningKey]) -> list[str]:
    return [key.state for key in keys]


async def test_a_new_key_is_published_before_it_signs(auth: RunningAuth) -> None:
    old = await identity_signed_by(auth)
    keys = await auth.rotate()
    new = keys[0].key_id
    assert [(key.key_id, key.state) for key in keys] == [(new, "next"), (old, "signing")]
    assert keys[0].signs_at.ToSeconds() - keys[0].created_at.ToSeconds() == PUBLISH_S
    assert await auth.published() == [old, new]
    auth.clock.move(PUBLISH_S - 1)
    assert await identity_signed_by(auth) == old
    auth.clock.move(1)
    assert await identity_signed_by(auth) == new
    listed = await auth.signing_keys.list_signing_keys(pb.ListSigningKeysRequest(), await auth.platform())
    assert states(list(listed.keys)) == ["signing", "retiring"]


async def test_the_old_key_stays_until_all_it_signed_has_expired(database_url: str, tmp_path: Path) -> None:
    longest = AuthSettings(access_token_lifetime_s=86_400, **FAST)
    async with running_auth(database_url, tmp_path, settings=longest) as auth:
        old = await identity_signed_by(auth)
        await auth.join("ada@example.org")
        await auth.rotate()
        auth.clock.move(PUBLISH_S - 1)
        last = (await auth.login("ada@example.org")).access_token
        assert signed_by(last) == old
        auth.clock.move(86_399)
        await auth.exchange(last)
        auth.clock.move(1)
        with pytest.raises(RpcError, match="INVALID_CREDENTIAL"):
            await auth.exchange(last)
        assert old in await auth.published()
        auth.clock.move(RETIRING_S - 86_399 - PUBLISH_S)
        assert old not in await auth.published()
        assert await identity_signed_by(auth) == (await auth.published())[0]


def test_no_login_may_outlive_its_key() -> None:
    with pytest.raises(ValidationError):
        AuthSettings(access_token_lifetime_s=LONGEST_TOKEN_S + 1)


async def test_what_has_retired_is_deleted_by_the_next_rotation(auth: RunningAuth, database_url: str) -> None:
    await auth.rotate()
    auth.clock.move(RETIRING_S)
    keys = await auth.rotate()
    assert states(keys) == ["next", "signing"]
    database = Database(database_url, "auth")
    async with database.reading() as connection:
        stored = (await connection.execute(sa.select(tables.signing_key.c.key_id))).scalars().all()
    await database.close()
    assert sorted(stored) == sorted(key.key_id for key in keys)


async def test_a_second_rotation_answers_with_the_one_under_way(auth: RunningAuth) -> None:
    first = await auth.rotate()
    assert await auth.rotate() == first
    auth.clock.move(PUBLISH_S)
    assert states(await auth.rotate()) == ["next", "signing", "retiring"]


async def test_two_who_rotate_at_once_make_one_key(replicas: list[RunningAuth]) -> None:
    answers = await asyncio.gather(*(replica.rotate() for replica in replicas * 3))
    assert {answer[0].key_id for answer in answers} == {answers[0][0].key_id}
    assert states(answers[0]) == ["next", "signing"]


async def test_replicas_that_run_see_the_new_key_and_believe_each_other(replicas: list[RunningAuth]) -> None:
    first, second = replicas
    old = await identity_signed_by(second)
    new = (await first.rotate())[0].key_id
    assert await second.published() == [old, new]
    await first.join("ada@example.org")
    for replica in replicas:
        replica.clock.move(PUBLISH_S)
    token = (await first.login("ada@example.org")).access_token
    assert signed_by(token) == new
    await second.exchange(token)
    assert await identity_signed_by(second) == new


async def test_a_withdrawn_key_is_worth_nothing_at_once(replicas: list[RunningAuth]) -> None:
    first, second = replicas
    token = (await first.join("ada@example.org")).access_token
    await second.exchange(token)
    await first.rotate()
    keys = await first.rotate(withdraw=True)
    assert states(keys) == ["signing"]
    for replica in replicas:
        assert await replica.published() == [keys[0].key_id]
        assert await identity_signed_by(replica) == keys[0].key_id
        with pytest.raises(RpcError, match="INVALID_CREDENTIAL"):
            await replica.exchange(token)
    await second.exchange((await second.login("ada@example.org")).access_token)


async def test_rotations_of_both_kinds_at_once_leave_keys_that_agree(replicas: list[RunningAuth]) -> None:
    first, second = replicas
    old = await identity_signed_by(first)
    await asyncio.gather(
        first.rotate(withdraw=True), second.rotate(), second.rotate(withdraw=True), first.rotate()
    )
    published = await first.published()
    assert old not in published
    assert await second.published() == published
    assert await identity_signed_by(first) == await identity_signed_by(second)


async def test_only_the_platforms_operators_rotate(tmp_path: Path) -> None:
    async with running_auth("", tmp_path, transport="remote") as auth:
        administrator = await auth.call_as((await auth.join("ada@example.org", "admin")).access_token)
        for call, reason in ((administrator, "PERMISSION_DENIED"), (Call.internal(), "MISSING_CREDENTIAL")):
            with pytest.raises(RpcError, match=reason):
                await auth.signing_keys.rotate_signing_key(pb.RotateSigningKeyRequest(), call)
        assert len(await auth.published()) == 1
