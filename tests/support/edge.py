"""Real services behind a real Envoy: a gRPC server with fake implementations, and a small HTTP facade."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from google.protobuf.descriptor import ServiceDescriptor
from omnihub.auth.v1 import auth_service_pb2
from omnihub.auth.v1.auth_service_api import AuthService
from omnihub.billing.v1 import billing_service_pb2, usage_pb2
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.common.v1 import stream_pb2
from omnihub.router.v1 import decision_pb2, router_service_pb2
from omnihub.router.v1.router_service_api import RouterService

from services.common.clock import now
from services.common.rpc import Call, Connector, Identity, Registry, RpcError
from services.common.rpc.method import methods_of
from services.common.rpc.server import GrpcServer
from services.common.service import Infrastructure, Service
from services.edge.app import build
from services.edge.settings import EdgeSettings
from tests.support.ports import free_port

# Ports from 32768 on are given to outgoing connections.
KEY = "omni_sk_test"
SPOOFED = "spoofed"
AREAS = ("auth", "billing", "provider", "router", "workflow", "agents", "gateway")


class FakeGate:
    """Knows one key. An identity token that arrives from outside would make a caller somebody else."""

    async def authenticate(self, credential: str) -> Identity:
        if credential != KEY:
            raise RpcError("INVALID_CREDENTIAL", "the key is unknown")
        scopes = frozenset({"chat", "usage", "keys", "admin", "platform"})
        return Identity(organisation_id="org_1", key_id="key_1", scopes=scopes)

    async def verify(self, token: str) -> Identity:
        return Identity(organisation_id=SPOOFED, scopes=frozenset({"chat", "usage", "keys", "admin"}))


class Unused:
    """A service of which a test uses only some methods: the others fail as not implemented."""

    def __init__(self, descriptor: ServiceDescriptor) -> None:
        for method in methods_of(descriptor):
            if not hasattr(self, method.name):
                setattr(self, method.name, self._refuse)

    async def _refuse(self, request: Any, call: Call) -> Any:
        raise RpcError("NOT_IMPLEMENTED", "not part of this test")


@dataclass
class Backend:
    """What the services saw, and the switches that tests turn."""

    calls: list[Call] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    http_requests: list[web.Request] = field(default_factory=list)
    http_bodies: list[int] = field(default_factory=list)
    error: RpcError | None = None
    """Raised at the start of every call."""
    late_error: RpcError | None = None
    """Raised in the middle of a stream."""
    port: int = 0
    facade_port: int = 0

    def enter(self, request: Any, call: Call) -> None:
        self.requests.append(request)
        self.calls.append(call)
        self.entered.set()
        if self.error is not None:
            raise self.error

    @contextmanager
    def noticing(self) -> Iterator[None]:
        """Tell the test when the caller leaves in the meantime, be it while something is written to him."""
        cancelled = self.cancelled
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            cancelled.set()
            raise

    async def hold(self) -> None:
        """Wait for the test, and tell it when the caller has left."""
        with self.noticing():
            await self.go_on.wait()

    def forget(self) -> None:
        """Start afresh for the next test, which shares the servers."""
        fresh = Backend(port=self.port, facade_port=self.facade_port)
        self.__dict__.update(fresh.__dict__)


class FakeAuth(Unused):
    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        super().__init__(AuthService.DESCRIPTOR)

    async def create_api_key(self, request: Any, call: Call) -> Any:
        self._backend.enter(request, call)
        answer = auth_service_pb2.CreateApiKeyResponse(secret="omni_sk_new")
        answer.key.key_id = "key_2"
        return answer

    async def rotate_api_key(self, request: Any, call: Call) -> Any:
        self._backend.enter(request, call)
        return auth_service_pb2.RotateApiKeyResponse(secret=request.key_id)

    async def login(self, request: Any, call: Call) -> Any:
        self._backend.enter(request, call)
        return auth_service_pb2.LoginResponse(token_type="Bearer")

    async def get_json_web_key_set(self, request: Any, call: Call) -> Any:
        self._backend.enter(request, call)
        answer = auth_service_pb2.GetJsonWebKeySetResponse()
        answer.keys.add(kty="OKP", crv="Ed25519")
        return answer


class FakeBilling(Unused):
    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        super().__init__(BillingService.DESCRIPTOR)

    async def list_usage(self, request: Any, call: Call) -> Any:
        self._backend.enter(request, call)
        total = usage_pb2.UsageGroup(requests=3, input_tokens=5, cost="0.25")
        return billing_service_pb2.ListUsageResponse(total=total)

    async def get_balance(self, request: Any, call: Call) -> Any:
        self._backend.enter(request, call)
        await self._backend.hold()
        return billing_service_pb2.GetBalanceResponse(balance="1.00")


# What the router's fake says.
ANSWER = "hello"


class FakeRouter(Unused):
    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        super().__init__(RouterService.DESCRIPTOR)

    async def chat(self, request: Any, call: Call) -> Any:
        self._backend.enter(request, call)
        return router_service_pb2.ChatResponse(output=ANSWER, model_used="wall/gpt-x", latency_ms=7)

    async def stream_chat(self, request: Any, call: Call) -> AsyncIterator[Any]:
        self._backend.enter(request, call)
        start = router_service_pb2.StreamStart(request_id=call.request_id, model_used="wall/gpt-x")
        with self._backend.noticing():
            yield router_service_pb2.StreamChatResponse(start=start)
            await self._backend.hold()
        if self._backend.late_error is not None:
            raise self._backend.late_error
        delta = stream_pb2.PartDelta(index=0, text=ANSWER)
        yield router_service_pb2.StreamChatResponse(part_delta=delta)
        yield router_service_pb2.StreamChatResponse(end=router_service_pb2.StreamEnd())

    async def get_decision(self, request: Any, call: Call) -> Any:
        self._backend.enter(request, call)
        decision = decision_pb2.Decision(decision_id=request.decision_id)
        return router_service_pb2.GetDecisionResponse(decision=decision)


def _facade(backend: Backend) -> web.Application:
    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        with backend.noticing():
            await response.prepare(request)
            await response.write(b'data: {"n": 1}\n\n')
            await backend.hold()
        await response.write(b"data: [DONE]\n\n")
        return response

    async def answer(request: web.Request) -> web.StreamResponse:
        backend.http_requests.append(request)
        backend.entered.set()
        body = await request.read()
        backend.http_bodies.append(len(body))
        if b'"stream":true' in body:
            return await stream(request)
        # A hostile upstream's headers, relayed: the edge must not act on them.
        headers = {"x-http-status": "200", "x-omnihub-error": "{}", "x-omnihub-cost": "0.1"}
        return web.json_response({"path": request.raw_path, "bytes": len(body)}, headers=headers)

    application = web.Application(client_max_size=2**30)
    application.router.add_route("*", "/{path:.*}", answer)
    return application


@asynccontextmanager
async def running_backend(credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[Backend]:
    """Serve the fakes on loopback."""
    backend = Backend()
    server = GrpcServer("127.0.0.1:0", FakeGate(), credentials)
    server.add(AuthService, FakeAuth(backend))
    server.add(BillingService, FakeBilling(backend))
    server.add(RouterService, FakeRouter(backend))
    backend.port = await server.start()
    await server.set_serving(True)
    runner = web.AppRunner(_facade(backend), handler_cancellation=True, keepalive_timeout=75)
    await runner.setup()
    backend.facade_port = free_port()
    await web.TCPSite(runner, "127.0.0.1", backend.facade_port).start()
    try:
        yield backend
    finally:
        await runner.cleanup()
        await server.stop(0)


def make_edge(
    data_dir: Path,
    port: int,
    *,
    backend: Backend | None = None,
    cors_origins: Sequence[str] = (),
    addresses: Mapping[str, str] | None = None,
    **settings: Any,
) -> Service:
    """Build the edge in front of `backend`, or in front of ports where nothing listens."""
    grpc_port = backend.port if backend else free_port()
    facade_port = backend.facade_port if backend else free_port()
    return build(
        EdgeSettings(**{"listen_host": "127.0.0.1", "concurrency": 1, "drain_timeout_s": 5.0, **settings}),
        Infrastructure(connector=Connector(Registry(), {}), data_dir=data_dir),
        addresses=addresses or dict.fromkeys(AREAS, f"127.0.0.1:{grpc_port}"),
        facade_address=f"127.0.0.1:{facade_port}",
        files_address=f"127.0.0.1:{facade_port}",
        port=port,
        cors_origins=cors_origins,
        data_dir=data_dir,
    )


@asynccontextmanager
async def running_edge(data_dir: Path, **options: Any) -> AsyncIterator[int]:
    """Run Envoy in this process's care; yield its port."""
    port = free_port()
    edge = make_edge(data_dir, port, **options)
    await edge.start()
    try:
        yield port
    finally:
        await edge.stop()


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a self-signed certificate of `localhost` and 127.0.0.1; return its file and that of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() - timedelta(days=1))
        .not_valid_after(now() + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain_file, key_file = folder / "certificate.pem", folder / "key.pem"
    chain_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return chain_file, key_file
