"""Serves FileService: message in, store, message out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Any

from omnihub.workflow.v1 import file_service_pb2 as pb

from services.common.outbox import SECOND
from services.common.page_token import decode_page_token, encode_page_token
from services.common.rpc import Call, RpcError
from services.workflow.files.provenance import Provenance
from services.workflow.files.store import FileStore
from services.workflow.files.uploads import EVIDENCE, UPLOAD, Uploads
from services.workflow.job_view import Link
from services.workflow.store.consents import Consents

DEFAULT_PAGE = 100
RPC_LIMIT = 32 * 2**20


class FileServer:
    """See the contract in omnihub/workflow/v1/file_service.proto."""

    def __init__(
        self,
        files: FileStore,
        uploads: Uploads,
        consents: Consents,
        provenance: Provenance,
        link: Link,
        clock: Callable[[], datetime],
    ) -> None:
        self._files = files
        self._uploads = uploads
        self._consents = consents
        self._provenance = provenance
        self._link = link
        self._clock = clock

    async def upload_file(self, request: pb.UploadFileRequest, call: Call) -> pb.UploadFileResponse:
        """Keep a file."""
        limit = min(RPC_LIMIT, self._uploads.limit)
        row = await self._uploads.take(
            call,
            _one(request.content),
            name=request.name,
            purpose=request.purpose or UPLOAD,
            limit=limit,
        )
        return pb.UploadFileResponse(file=file_view(row, self._link))

    async def get_file(self, request: pb.GetFileRequest, call: Call) -> pb.GetFileResponse:
        """Return the facts of a file."""
        row = await self._files.of_organisation(call.identity.organisation_id, request.file_id)
        return pb.GetFileResponse(file=file_view(row, self._link))

    async def list_files(self, request: pb.ListFilesRequest, call: Call) -> pb.ListFilesResponse:
        """Return a page of files."""
        size = request.page_size or DEFAULT_PAGE
        rows = await self._files.page(
            call.identity.organisation_id, size + 1, read_page_token(request.page_token)
        )
        shown = rows[:size]
        response = pb.ListFilesResponse(files=[file_view(row, self._link) for row in shown])
        if len(rows) > size:
            response.next_page_token = encode_page_token(shown[-1].created_at, shown[-1].id)
        return response

    async def delete_file(self, request: pb.DeleteFileRequest, call: Call) -> pb.DeleteFileResponse:
        """Remove a file; one that is not there is none any more."""
        row = await self._files.find(request.file_id)
        if row is not None and row.organisation_id == call.identity.organisation_id:
            if row.purpose == EVIDENCE and await self._consents.relies_on(row.id):
                raise RpcError(
                    "PRECONDITION_FAILED",
                    f"a consent that holds relies on {row.id}; revoke the consent first",
                )
            await self._files.remove([row.id], round(self._clock().timestamp() * SECOND))
        return pb.DeleteFileResponse()

    async def verify_provenance(
        self, request: pb.VerifyProvenanceRequest, call: Call
    ) -> pb.VerifyProvenanceResponse:
        """Say what a file says of its origin."""
        row = await self._files.of_organisation(call.identity.organisation_id, request.file_id)
        found = await self._provenance.verify(await self._files.read(row), row.mime)
        return pb.VerifyProvenanceResponse(
            state=found.state, manifest_json=found.manifest_json, problems=found.problems
        )


async def _one(data: bytes) -> AsyncIterator[bytes]:
    yield data


def file_view(row: Any, link: Link) -> pb.File:
    """Return a file as its owner sees it."""
    message = pb.File(
        file_id=row.id,
        name=row.name,
        mime=row.mime,
        size=row.size,
        sha256=row.sha256,
        job_id=row.job_id,
        url=link(row.id),
        purpose=row.purpose,
    )
    message.created_at.FromMicroseconds(row.created_at)
    if row.expires_at:
        message.expires_at.FromMicroseconds(row.expires_at)
    return message


def read_page_token(token: str) -> tuple[int, str] | None:
    """Return where a page of newest-first rows starts. Raises RpcError INVALID_ARGUMENT."""
    if not token:
        return None
    created_at, row_id = decode_page_token(token, 2)
    if not created_at.isdigit() or len(created_at) > 18:
        raise RpcError("INVALID_ARGUMENT", "page_token: not one of ours")
    return int(created_at), row_id
