"""Serves omnihub.workflow.v1.FileContentService."""

from __future__ import annotations

from collections.abc import AsyncIterator

from omnihub.workflow.v1 import file_content_service_pb2 as pb

from services.common.rpc import Call, RpcError
from services.workflow.files.store import FileStore

PIECE = 256 * 1024


class FileContentServer:
    """See the contract in omnihub/workflow/v1/file_content_service.proto."""

    def __init__(self, files: FileStore) -> None:
        self._files = files

    async def read_file(self, request: pb.ReadFileRequest, call: Call) -> AsyncIterator[pb.ReadFileResponse]:
        """Send a file in pieces. Raises RpcError NOT_FOUND before the first one, INTERNAL after the last."""
        row = await self._files.find(request.file_id)
        if row is None or row.organisation_id != call.identity.organisation_id:
            raise RpcError("NOT_FOUND", f"there is no file {request.file_id}")
        pieces = await self._files.stream(row)
        start = pb.FileStart(name=row.name, mime=row.mime, size=row.size)
        yield pb.ReadFileResponse(start=start)
        async for piece in pieces:
            for begin in range(0, len(piece), PIECE):
                yield pb.ReadFileResponse(data=piece[begin : begin + PIECE])
