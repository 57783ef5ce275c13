"""`billing = connector.connect(BillingService, "billing")`: the same line in every deployment."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.rpc.local import LocalClient, Registry
from services.common.rpc.method import ServiceInterface
from services.common.rpc.remote import RemoteClient
from services.common.rpc.wire import CHANNEL_OPTIONS
from services.common.sockets import UNIX

LOCAL = "local"
CHECK_TIMEOUT_S = 2.0
Interface = TypeVar("Interface")


class Connector:
    """Makes clients. Nothing else in a service knows where its peers run."""

    def __init__(
        self,
        registry: Registry,
        peers: Mapping[str, str],
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._registry = registry
        self._peers = peers
        self._credentials = credentials
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._connected: set[str] = set()

    def connect(self, interface: type[Interface], peer: str) -> Interface:
        """Return a client of `interface`, served by `peer`: in this process or at its gRPC target."""
        described: type[ServiceInterface] = interface  # type: ignore[assignment]
        target = self._peers.get(peer, LOCAL)
        if target != LOCAL:
            self._connected.add(peer)
            return RemoteClient(described, self._channel(target))  # type: ignore[return-value]
        implementation = self._registry.get(described)
        if implementation is None:
            raise LookupError(
                f"{peer} is not a target of this process; name its address in OMNIHUB_PEERS__{peer.upper()}"
            )
        return LocalClient(described, implementation)  # type: ignore[return-value]

    async def problems(self) -> dict[str, str]:
        """Return what is wrong with each peer of another process that a client was made for."""
        peers = sorted(self._connected)
        answers = await asyncio.gather(*map(self._check, peers))
        return {f"peer {peer}": answer for peer, answer in zip(peers, answers, strict=True) if answer}

    async def _check(self, peer: str) -> str:
        target = self._peers[peer]
        health = health_pb2_grpc.HealthStub(self._channel(target))
        try:
            answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=CHECK_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return f"{target} cannot be reached: {error.details()}"
        serving = answer.status == health_pb2.HealthCheckResponse.SERVING
        return "" if serving else f"{target} is starting or stopping"

    def _channel(self, target: str) -> grpc.aio.Channel:
        if target not in self._channels:
            # Who may open a Unix socket, its folder says.
            if self._credentials is None or target.startswith(UNIX):
                channel = grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
            else:
                channel = grpc.aio.secure_channel(target, self._credentials, options=CHANNEL_OPTIONS)
            self._channels[target] = channel
        return self._channels[target]

    async def close(self) -> None:
        """Close all channels."""
        for channel in self._channels.values():
            await channel.close()
