"""A running auth service to test against, over either transport, with a clock the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from omnihub.auth.v1 import auth_service_pb2 as pb
from omnihub.auth.v1 import signing_key_service_pb2 as signing
from omnihub.auth.v1.auth_service_api import AuthService
from omnihub.auth.v1.signing_key_service_api import SigningKeyService
from pydantic import SecretStr

from services.auth.app import build
from services.auth.settings import AuthSettings
from services.common.authenticator import Authenticator, identity_from_proto
from services.common.ids import new_id
from services.common.rpc.call import Call
from services.common.rpc.connect import Connector
from services.common.rpc.local import Registry
from services.common.rpc.server import GrpcServer
from services.common.service import Infrastructure, Service
from tests.support.ports import free_port

BOOTSTRAP_KEY = "omni_sk_bootstrap-key-of-the-tests-0123456789"
# As cheap as the settings allow.
FAST = {"password_memory_kib": 19456, "password_passes": 2}
PASSWORD = "correct horse battery"


class Clock:
    """Starts at the present and stands still until it is moved."""

    def __init__(self) -> None:
        self.time = datetime.now(UTC).replace(microsecond=0)

    def __call__(self) -> datetime:
        return self.time

    def move(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


@dataclass
class RunningAuth:
    """The service, and clients of it."""

    client: AuthService
    signing_keys: SigningKeyService
    service: Service
    clock: Clock

    async def exchange(self, credential: str) -> pb.ExchangeCredentialResponse:
        return await self.client.exchange_credential(
            pb.ExchangeCredentialRequest(credential=credential), Call.internal()
        )

    async def call_as(self, credential: str, idempotency_key: str = "") -> Call:
        answer = await self.exchange(credential)
        identity = identity_from_proto(answer.identity, answer.identity_token)
        return Call(new_id("req"), identity, idempotency_key=idempotency_key)

    async def platform(self) -> Call:
        return await self.call_as(BOOTSTRAP_KEY)

    async def invite(self, inviter: Call, role: str = "member", email: str = "") -> str:
        request = pb.CreateInvitationRequest(role=role, email=email)
        return (await self.client.create_invitation(request, inviter)).invitation

    async def register(
        self, email: str, invitation: str = "", password: str = PASSWORD
    ) -> pb.RegisterResponse:
        request = pb.RegisterRequest(email=email, password=password, invitation=invitation)
        return await self.client.register(request, Call.internal())

    async def join(
        self, email: str, role: str = "member", inviter: Call | None = None
    ) -> pb.RegisterResponse:
        """Register a person by an invitation with `role`; owners are invited and then made owners."""
        inviter = inviter or await self.platform()
        invited_as = "admin" if role == "owner" else role
        registered = await self.register(email, await self.invite(inviter, invited_as))
        if role == "owner":
            request = pb.UpdateMemberRequest(user_id=registered.user.user_id, role="owner")
            await self.client.update_member(request, inviter)
        return registered

    async def login(
        self, email: str, password: str = PASSWORD, organisation_id: str = "", client_address: str = ""
    ) -> pb.LoginResponse:
        request = pb.LoginRequest(email=email, password=password, organisation_id=organisation_id)
        return await self.client.login(request, Call(new_id("req"), client_address=client_address))

    async def rotate(self, *, withdraw: bool = False) -> list[signing.SigningKey]:
        """Rotate the signing key; return all keys."""
        request = signing.RotateSigningKeyRequest(withdraw=withdraw)
        return list((await self.signing_keys.rotate_signing_key(request, await self.platform())).keys)

    async def published(self) -> list[str]:
        """Return the ids of the published signing keys."""
        keys = await self.client.get_json_web_key_set(pb.GetJsonWebKeySetRequest(), Call.internal())
        return [key.kid for key in keys.keys]

    async def create_key(self, call: Call, **fields: object) -> pb.CreateApiKeyResponse:
        return await self.client.create_api_key(pb.CreateApiKeyRequest(**{"name": "test", **fields}), call)


def build_auth(
    database_url: str,
    data_dir: Path,
    *,
    settings: AuthSettings | None = None,
    clock: Clock | None = None,
    bootstrap_api_key: str | None = BOOTSTRAP_KEY,
    master_key: str | None = None,
) -> Service:
    infrastructure = Infrastructure(
        connector=Connector(Registry(), {}), data_dir=data_dir, database_url=database_url
    )
    return build(
        settings or AuthSettings(**FAST),
        infrastructure,
        bootstrap_api_key=SecretStr(bootstrap_api_key) if bootstrap_api_key else None,
        master_key=SecretStr(master_key) if master_key else None,
        now=clock or Clock(),
    )


@asynccontextmanager
async def running_auth(
    database_url: str, data_dir: Path, *, transport: str = "local", **options: object
) -> AsyncIterator[RunningAuth]:
    clock = Clock()
    service = build_auth(database_url, data_dir, clock=clock, **options)  # type: ignore[arg-type]
    registry = Registry()
    for interface, implementation in service.interfaces:
        registry.add(interface, implementation)
    local = Connector(registry, {})
    try:
        await service.start()
        if transport == "local":
            yield _running(local, service, clock)
        else:
            gate = Authenticator(local.connect(AuthService, "auth"))
            async with _listening(service, gate) as remote:
                yield _running(remote, service, clock)
    finally:
        await service.stop()


def _running(connector: Connector, service: Service, clock: Clock) -> RunningAuth:
    return RunningAuth(
        connector.connect(AuthService, "auth"), connector.connect(SigningKeyService, "auth"), service, clock
    )


@asynccontextmanager
async def _listening(service: Service, gate: Authenticator) -> AsyncIterator[Connector]:
    server = GrpcServer(f"127.0.0.1:{free_port()}", gate)
    for interface, implementation in service.interfaces:
        server.add(interface, implementation)
    port = await server.start()
    connector = Connector(Registry(), {"auth": f"127.0.0.1:{port}"})
    try:
        yield connector
    finally:
        await connector.close()
        await server.stop(0)
