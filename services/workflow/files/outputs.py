"""Brings what a provider made into our own store, at once: its links expire."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from omnihub.common.v1.media_pb2 import MediaOutput
from omnihub.provider.v1 import media_provider_service_pb2 as provider
from omnihub.router.v1 import media_router_service_pb2 as router
from omnihub.router.v1.media_router_service_api import MediaRouterService

from services.common.outbox import SECOND
from services.common.rpc import Call, RpcError
from services.workflow.domain.media_types import ALLOWED, NEVER, TEXTS, UNKNOWN, agrees, canonical
from services.workflow.files.provenance import Provenance
from services.workflow.files.sniffing import type_of
from services.workflow.files.store import FileStore
from services.workflow.files.uploads import DAY_S
from services.workflow.store.together import Kept

FETCH_LIMIT_S = 300.0
LARGEST_OUTPUT = 512 * 2**20


class Download(Protocol):
    """Fetches a foreign address, through the guard."""

    async def __call__(self, url: str, limit: int) -> bytes:
        """Return the content. Raises RpcError URL_REFUSED, BODY_TOO_LARGE, PROVIDER_FAILED."""
        ...


class Voices(Protocol):
    """Keeps what providers have cloned."""

    async def __call__(self, job_id: str, provider: str, resource: str, now: int) -> str:
        """Return the id by which callers name it; the resource itself when it is no voice."""
        ...


class Outputs:
    """Keeps outputs of jobs, for `days`; 0 for ever."""

    def __init__(
        self,
        files: FileStore,
        router_service: MediaRouterService,
        download: Download,
        voices: Voices,
        provenance: Provenance,
        days: int,
        clock: Callable[[], datetime],
    ) -> None:
        self._files = files
        self._router = router_service
        self._download = download
        self._voices = voices
        self._provenance = provenance
        self._days = days
        self._clock = clock

    async def keep(
        self, organisation_id: str, job_id: str, provider_name: str, output: provider.ProviderOutput
    ) -> Kept:
        """Return the output as it is kept: with id, size, type and hash. Raises RpcError.

        Its file counts once its facts are written down, with the end of its job.
        """
        kept = MediaOutput()
        kept.CopyFrom(output.facts)
        match output.WhichOneof("content"):
            case "text":
                kept.text = output.text
                return Kept(kept)
            case "resource":
                kept.resource_id = await self._voices(job_id, provider_name, output.resource, self._now())
                return Kept(kept)
            case "data":
                data = output.data
            case "url":
                data = await self._download(output.url, LARGEST_OUTPUT)
            case "fetch_reference":
                data = await self._fetch(provider_name, output.fetch_reference)
            case _:
                raise RpcError("PROVIDER_PROTOCOL", "the provider named an output without a content")
        mime = checked_output_type(data, output.facts.mime)
        # Which model made it is known to the job; here it is the provider's.
        data = await self._provenance.sign(data, mime, provider_name, output.facts.synthetic)
        now = self._now()
        facts = await self._files.lay_down(
            organisation_id,
            data,
            mime=mime,
            job_id=job_id,
            now=now,
            expires_at=now + self._days * DAY_S * SECOND if self._days else 0,
        )
        kept.file_id, kept.mime = facts["id"], facts["mime"]
        kept.size, kept.sha256 = facts["size"], facts["sha256"]
        return Kept(kept, facts)

    def _now(self) -> int:
        return round(self._clock().timestamp() * SECOND)

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


def checked_output_type(data: bytes, said: str) -> str:
    """Return the type of an output. Raises RpcError when it is empty, or another than its provider says.

    A type that cannot be told from the content, such as raw sound, is believed.
    """
    if not data:
        raise RpcError("PROVIDER_PROTOCOL", "the provider sent an output without a content")
    found, named = type_of(data), canonical(said)
    if found == UNKNOWN:
        return named or UNKNOWN
    if not named or agrees(named, found):
        return found if named not in TEXTS else named
    if named in ALLOWED or found in NEVER:
        raise RpcError("UNSUPPORTED_MEDIA", f"the provider said {named[:80]} and sent {found}")
    return named
