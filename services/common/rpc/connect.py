"""`billing = connector.connect(BillingService, "billing")`: the same line in every deployment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import grpc

from services.common.rpc.local import LocalClient, Registry
from services.common.rpc.method import ServiceInterface
from services.common.rpc.remote import RemoteClient
from services.common.rpc.wire import CHANNEL_OPTIONS

LOCAL = "local"
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

    def connect(self, interface: type[Interface], peer: str) -> Interface:
        """Return a client of `interface`, served by `peer`: in this process or at its gRPC target."""
        described: type[ServiceInterface] = interface  # type: ignore[assignment]
        target = self._peers.get(peer, LOCAL)
        if target != LOCAL:
            return RemoteClient(described, self._channel(target))  # type: ignore[return-value]
        implementation = self._registry.get(described)
        if implementation is None:
            raise LookupError(
                f"{peer} is not a target of this process; name its address in OMNIHUB_PEERS__{peer.upper()}"
            )
        return LocalClient(described, implementation)  # type: ignore[return-value]

    def _channel(self, target: str) -> grpc.aio.Channel:
        if target not in self._channels:
            if self._credentials is None:
                channel = grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
            else:
                channel = grpc.aio.secure_channel(target, self._credentials, options=CHANNEL_OPTIONS)
            self._channels[target] = channel
        return self._channels[target]

    async def close(self) -> None:
        """Close all channels."""
        for channel in self._channels.values():
            await channel.close()
