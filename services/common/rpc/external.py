"""gRPC servers outside the suite, called by address: they are peers in nothing but the contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.rpc.errors import RpcError
from services.common.rpc.method import ServiceInterface
from services.common.rpc.remote import RemoteClient
from services.common.rpc.wire import CHANNEL_OPTIONS

Interface = TypeVar("Interface")


@dataclass(frozen=True, slots=True)
class Tls:
    """Speak TLS. `ca_certificate` is PEM; empty for the authorities of the machine."""

    ca_certificate: str = ""


def open_channel(address: str, tls: Tls | None, connect_timeout_s: float) -> grpc.aio.Channel:
    """Return a channel to `host:port`. It connects with the first call, and again after a failure."""
    options = [
        *CHANNEL_OPTIONS,
        # What gRPC calls a minimum of the back-off is how long one attempt to connect may take.
        ("grpc.min_reconnect_backoff_ms", round(connect_timeout_s * 1000)),
        # A server that was replaced at the same address must not be met through an old connection's state.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    roots = tls.ca_certificate.encode() or None
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(roots), options=options)


class ExternalServer:
    """One such server. Needs a running event loop."""

    def __init__(self, address: str, tls: Tls | None = None, connect_timeout_s: float = 5.0) -> None:
        self._channel = open_channel(address, tls, connect_timeout_s)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def client(self, interface: type[Interface]) -> Interface:
        """Return a client of `interface`. Errors are RpcError."""
        described: type[ServiceInterface] = interface  # type: ignore[assignment]
        return RemoteClient(described, self._channel)  # type: ignore[return-value]

    async def serving(self, service: str, timeout_s: float) -> bool | None:
        """Ask grpc.health.v1 whether `service` is served; None where nobody can tell. Raises RpcError."""
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            answer = await self._health.Check(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND):
                return None
            raise RpcError("UNAVAILABLE", error.details() or error.code().name) from None
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def close(self) -> None:
        """Close the connection; calls under way end."""
        await self._channel.close()
