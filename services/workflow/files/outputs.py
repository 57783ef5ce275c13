"""Brings what a provider made into our own store, at once: its links expire."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from omnihub.common.v1.media_pb2 import MediaOutput
from omnihub.provider.v1 import media_provider_service_pb2 as provider
from omnihub.router.v1 import media_router_service_pb2 as router
from omnihub.router.v1.media_router_service_api import MediaRouterService

from services.common.rpc import Call, RpcError
from services.workflow.files.store import FileStore
from services.workflow.store.records import SECOND

FETCH_LIMIT_S = 300.0
LARGEST_OUTPUT = 512 * 2**20


class Download(Protocol):
    """Fetches a foreign address, through the guard."""

    async def __call__(self, url: str, limit: int) -> bytes:
        """Return the content. Raises RpcError URL_REFUSED, BODY_TOO_LARGE, PROVIDER_FAILED."""
        ...


class Outputs:
    """Keeps outputs of jobs."""

    def __init__(
        self,
        files: FileStore,
        router_service: MediaRouterService,
        download: Download,
        clock: Callable[[], datetime],
    ) -> None:
        self._files = files
        self._router = router_service
        self._download = download
        self._clock = clock

    async def keep(
        self, organisation_id: str, job_id: str, provider_name: str, output: provider.ProviderOutput
    ) -> MediaOutput:
        """Return the output as it is kept: with id, size, type and hash. Raises RpcError."""
        kept = MediaOutput()
        kept.CopyFrom(output.facts)
        match output.WhichOneof("content"):
            case "text":
                kept.text = output.text
                return kept
            case "resource":
                kept.resource_id = output.resource
                return kept
            case "data":
                data = output.data
            case "url":
                data = await self._download(output.url, LARGEST_OUTPUT)
            case "fetch_reference":
                data = await self._fetch(provider_name, output.fetch_reference)
            case _:
                raise RpcError("PROVIDER_PROTOCOL", "the provider named an output without a content")
        row = await self._files.put(
            organisation_id,
            "",
            data,
            purpose="output",
            now=round(self._clock().timestamp() * SECOND),
            mime=output.facts.mime,
            job_id=job_id,
        )
        kept.file_id, kept.mime, kept.size, kept.sha256 = row.id, row.mime, row.size, row.sha256
        return kept

    async def _fetch(self, provider_name: str, reference: str) -> bytes:
        request = provider.FetchOutputRequest(provider=provider_name, fetch_reference=reference)
        pieces, size = [], 0
        async for message in self._router.fetch_output(
            router.FetchOutputRequest(request=request), Call.internal(FETCH_LIMIT_S)
        ):
            size += len(message.data)
            if size > LARGEST_OUTPUT:
                raise RpcError("BODY_TOO_LARGE", f"the output exceeds {LARGEST_OUTPUT} bytes")
            pieces.append(message.data)
        return b"".join(pieces)
