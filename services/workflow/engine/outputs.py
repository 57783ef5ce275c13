"""Brings what a provider made into our own store, at once: its links expire."""

from __future__ import annotations

from typing import Protocol

from omnihub.common.v1.media_pb2 import MediaOutput
from omnihub.provider.v1.media_provider_service_pb2 import ProviderOutput


class OutputStore(Protocol):
    """Where outputs are kept."""

    async def keep(
        self, organisation_id: str, job_id: str, provider: str, output: ProviderOutput
    ) -> MediaOutput:
        """Return the output as it is kept: with id, size, type and hash. Raises RpcError."""
        ...
