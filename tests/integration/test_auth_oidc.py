"""Tokens of an external OpenID Connect issuer as credentials, against a real HTTP issuer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from omnihub.auth.v1 import auth_service_pb2 as pb

from services.auth.domain.errors import InvalidCredentialError, IssuerUnavailableError
from services.auth.issuer import ExternalIssuer
from services.auth.settings import AuthSettings, OidcSettings
from services.common.rpc.errors import RpcError
from services.common.service import StartupError
from tests.support.auth import FAST, PASSWORD, Clock, RunningAuth, build_auth, running_auth
from tests.support.oidc import AUDIENCE, Issuer, running_issuer
from tests.support.ports import free_port


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with running_issuer() as running:
        yield running


def settings(issuer: Issuer, **more: Any) -> AuthSettings:
    return AuthSettings(oidc=OidcSettings(issuer=issuer.url, audience=AUDIENCE, **more), **FAST)


@asynccontextmanager
async def running(
    database_url: str, data_dir: Path, issuer: Issuer, **more: Any
) -> AsyncIterator[RunningAuth]:
    """Start the service twice: the first organisation must exist before people are put into it."""
    async with running_auth(database_url, data_dir) as auth:
        organisation_id = (await auth.platform()).identity.organisation_id
    configured = settings(issuer, organisation_id=organisation_id, **more)
    async with running_auth(database_url, data_dir, settings=configured) as auth:
        yield auth


def in_a_minute(clock: Clock) -> float:
    return clock().timestamp() + 60


async def refused(auth: RunningAuth, token: str) -> None:
    with pytest.raises(RpcError) as caught:
        await auth.exchange(token)
    assert caught.value.reason == "INVALID_CREDENTIAL"


async def test_a_person_the_issuer_vouches_for_is_put_into_the_organisation(
    database_url: str, tmp_path: Path, issuer: Issuer
) -> None:
    async with running(database_url, tmp_path, issuer, default_role="viewer") as auth:
        token = issuer.token(in_a_minute(auth.clock), email="Ada@Example.org", name="Ada\0 Lovelace")
        answers = await asyncio.gather(*(auth.exchange(token) for _ in range(5)))
        assert len({answer.identity.user_id for answer in answers}) == 1
        assert answers[0].identity.role == "viewer"
        assert answers[0].expires_in_s == 60
        assert issuer.requests == 1
        platform = await auth.platform()
        [member] = (await auth.client.list_members(pb.ListMembersRequest(), platform)).members
        assert (member.user.email, member.user.display_name) == ("ada@example.org", "Ada Lovelace")
        # Someone without a password of ours cannot log in with one.
        with pytest.raises(RpcError, match="INVALID_CREDENTIAL"):
            await auth.login("ada@example.org")
        # Who was removed does not come back because the issuer still knows them.
        remove = pb.RemoveMemberRequest(user_id=member.user.user_id)
        await auth.client.remove_member(remove, platform)
        await refused(auth, token)


async def test_a_registered_person_is_found_by_email(
    database_url: str, tmp_path: Path, issuer: Issuer
) -> None:
    async with running(database_url, tmp_path, issuer, email_claim="upn") as auth:
        ada = await auth.join("ada@example.org", "admin")
        token = issuer.token(in_a_minute(auth.clock), upn="ada@example.org", email="grace@example.org")
        identity = (await auth.exchange(token)).identity
        assert (identity.user_id, identity.role) == (ada.user.user_id, "admin")
        await auth.login("ada@example.org", PASSWORD)


async def test_without_an_organisation_strangers_are_refused(tmp_path: Path, issuer: Issuer) -> None:
    async with running_auth("", tmp_path, settings=settings(issuer)) as auth:
        await auth.join("ada@example.org")
        expires_at = in_a_minute(auth.clock)
        await auth.exchange(issuer.token(expires_at, email="ada@example.org"))
        await refused(auth, issuer.token(expires_at, email="grace@example.org"))


async def test_claims_that_do_not_hold_are_refused(tmp_path: Path, issuer: Issuer) -> None:
    async with running("", tmp_path, issuer) as auth:
        now, soon, email = auth.clock().timestamp(), in_a_minute(auth.clock), {"email": "ada@example.org"}
        for token in (
            issuer.token(now, **email),
            issuer.token(soon, **email, aud="someone-else"),
            issuer.token(soon, **email, iss="https://elsewhere.example"),
            issuer.token(soon, **email, nbf=soon),
            issuer.token(soon, **email, email_verified=False),
            issuer.token(soon),
            issuer.token(soon, email=5),
            issuer.token(soon, email="nul\0@example.org"),
            issuer.token(soon, **email)[:-4] + "AAAA",
        ):
            await refused(auth, token)
        members = await auth.client.list_members(pb.ListMembersRequest(), await auth.platform())
        assert not members.members
        assert (await auth.exchange(issuer.token(soon, **email, email_verified=True))).identity.user_id


async def test_without_a_configured_issuer_its_tokens_are_nothing(tmp_path: Path, issuer: Issuer) -> None:
    async with running_auth("", tmp_path) as auth:
        await refused(auth, issuer.token(in_a_minute(auth.clock), email="ada@example.org"))
    assert issuer.requests == 0


async def test_an_unknown_organisation_stops_the_start(tmp_path: Path, issuer: Issuer) -> None:
    for organisation_id in ("org_unknown", "nonsense\0"):
        service = build_auth("", tmp_path, settings=settings(issuer, organisation_id=organisation_id))
        with pytest.raises(StartupError, match="organisation_id"):
            await service.start()
        await service.stop()


class Monotonic:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def reader(issuer: Issuer, monotonic: Monotonic, **more: Any) -> tuple[ExternalIssuer, Clock]:
    clock = Clock()
    oidc = OidcSettings(issuer=issuer.url, audience=AUDIENCE, **more)
    return ExternalIssuer(oidc, clock, monotonic), clock


@pytest.mark.parametrize("algorithm", ["RS256", "RS512", "PS256", "ES256", "EdDSA"])
@pytest.mark.parametrize("names_algorithm", [True, False])
async def test_algorithms(issuer: Issuer, algorithm: str, names_algorithm: bool) -> None:
    issuer.add_key("other", algorithm, names_algorithm=names_algorithm)
    external, clock = reader(issuer, Monotonic())
    claims = await external.read(issuer.token(in_a_minute(clock), "other", email="a@b"))
    assert claims["email"] == "a@b"


async def test_a_public_key_is_no_shared_secret(issuer: Issuer) -> None:
    external, clock = reader(issuer, Monotonic())
    body = {"iss": issuer.url, "aud": AUDIENCE, "exp": in_a_minute(clock)}
    forged = jwt.encode(body, "a secret of thirty-two bytes at least", "HS256", headers={"kid": "rsa-1"})
    with pytest.raises(InvalidCredentialError):
        await external.read(forged)
    assert issuer.requests == 0


async def test_a_new_key_is_fetched_at_most_once_per_interval(issuer: Issuer) -> None:
    monotonic = Monotonic()
    external, clock = reader(issuer, monotonic, refresh_interval_s=30)
    await external.read(issuer.token(in_a_minute(clock)))
    issuer.add_key("rsa-2", "RS256")
    token = issuer.token(in_a_minute(clock), "rsa-2")
    for _ in range(3):
        with pytest.raises(InvalidCredentialError):
            await external.read(token)
    assert issuer.requests == 1
    monotonic.time += 30
    await external.read(token)
    await external.read(token)
    assert issuer.requests == 2


async def test_an_issuer_that_is_away_is_no_fault_of_the_token(issuer: Issuer) -> None:
    monotonic = Monotonic()
    external, clock = reader(issuer, monotonic, refresh_interval_s=30, keys_lifetime_s=100)
    token = issuer.token(in_a_minute(clock))
    issuer.failing = True
    with pytest.raises(IssuerUnavailableError) as caught:
        await external.read(token)
    assert caught.value.retry_after_s
    issuer.failing = False
    monotonic.time += 30
    await external.read(token)
    # Old keys serve while fetching new ones fails.
    issuer.failing = True
    monotonic.time += 200
    await external.read(token)
    assert issuer.requests == 3


async def test_a_withdrawn_key_is_forgotten_when_keys_are_old(issuer: Issuer) -> None:
    monotonic = Monotonic()
    external, clock = reader(issuer, monotonic, keys_lifetime_s=100)
    token = issuer.token(in_a_minute(clock))
    await external.read(token)
    issuer.published.clear()
    monotonic.time += 101
    with pytest.raises(InvalidCredentialError):
        await external.read(token)


@pytest.mark.parametrize("path", ["redirect", "nonsense", "endless", "missing"])
async def test_what_is_no_key_set_counts_as_away(issuer: Issuer, path: str) -> None:
    external, clock = reader(issuer, Monotonic(), jwks_url=f"{issuer.url}/{path}")
    with pytest.raises(IssuerUnavailableError):
        await external.read(issuer.token(in_a_minute(clock)))


async def test_keys_that_cannot_verify_are_ignored(issuer: Issuer) -> None:
    external, clock = reader(issuer, Monotonic(), jwks_url=f"{issuer.url}/odd", refresh_interval_s=0)
    body = {"iss": issuer.url, "aud": AUDIENCE, "exp": in_a_minute(clock)}
    secret = b"secret-secret-secret-secret-secret"
    for token in (
        jwt.encode(body, secret, "HS256", headers={"kid": "shared"}),
        issuer.token(in_a_minute(clock)),
    ):
        with pytest.raises(InvalidCredentialError):
            await external.read(token)
    for key_id in ("broken", "enc", "shared"):
        issuer._private[key_id] = issuer._private["rsa-1"]
        with pytest.raises(InvalidCredentialError):
            await external.read(issuer.token(in_a_minute(clock), key_id))


async def test_discovery_must_speak_of_the_same_issuer(issuer: Issuer) -> None:
    issuer.claimed_issuer = "https://elsewhere.example"
    external, clock = reader(issuer, Monotonic())
    with pytest.raises(IssuerUnavailableError):
        await external.read(issuer.token(in_a_minute(clock)))


async def test_nobody_listening_counts_as_away(issuer: Issuer) -> None:
    external, clock = reader(issuer, Monotonic(), jwks_url=f"http://127.0.0.1:{free_port()}/keys")
    with pytest.raises(IssuerUnavailableError):
        await external.read(issuer.token(in_a_minute(clock)))
