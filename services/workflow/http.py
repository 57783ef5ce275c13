"""What browsers and providers reach over plain HTTP: uploads, downloads, notifications of providers."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol
from urllib.parse import quote

from google.protobuf.json_format import MessageToDict
from omnihub.workflow.v1 import job_service_pb2 as pb
from python_multipart.exceptions import MultipartParseError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message

from services.common.authenticator import Authenticator
from services.common.ids import new_id
from services.common.rpc import Call, RpcError
from services.common.rpc.errors import visible_error
from services.common.rpc.server import credential_in
from services.workflow.domain.media_types import SHOWN
from services.workflow.files.links import Links
from services.workflow.files.server import file_view
from services.workflow.files.store import FileStore
from services.workflow.files.uploads import PURPOSES, UPLOAD, Uploads

PIECE = 256 * 1024
# The parts of a form beside the file.
FORM_EXTRA = 64 * 1024
NOTIFICATION_LIMIT = 1024 * 1024
RECEIVE_LIMIT_S = 20.0
# Providers retry what fails, and give up on what is refused.
_UNSAFE_HEADERS = frozenset({"authorization", "cookie", "host", "connection"})
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})\Z")

Answer = Callable[[Request], Awaitable[Response]]


class Notified(Protocol):
    """Takes in what providers notify."""

    async def receive_webhook(
        self, request: pb.ReceiveWebhookRequest, call: Call
    ) -> pb.ReceiveWebhookResponse:
        """See JobService.ReceiveWebhook."""
        ...


class FileRoutes:
    """Serves `/files` and `/webhooks`."""

    def __init__(
        self,
        files: FileStore,
        uploads: Uploads,
        links: Links,
        jobs: Notified,
        authenticator: Authenticator,
    ) -> None:
        self._files = files
        self._uploads = uploads
        self._links = links
        self._jobs = jobs
        self._authenticator = authenticator

    def routes(self) -> list[Route]:
        """Return the routes, for the HTTP listener."""
        return [
            Route("/files", _answering(self.upload), methods=["POST"]),
            Route("/files/{file_id}", _answering(self.download), methods=["GET"]),
            Route("/webhooks/{provider}", _answering(self.receive), methods=["POST"]),
        ]

    async def _call(self, request: Request) -> Call:
        credential = credential_in(request.headers)
        if not credential:
            raise RpcError(
                "MISSING_CREDENTIAL", "no API key: send `Authorization: Bearer omni_sk_...` or `X-API-Key`"
            )
        identity = await self._authenticator.authenticate(credential)
        if not identity.holds("chat"):
            raise RpcError("PERMISSION_DENIED", "the credential lacks the scope `chat`")
        return Call(_request_id(request), identity)

    async def upload(self, request: Request) -> Response:
        """Keep a file: the body itself, or the part `file` of a form."""
        call = await self._call(request)
        said = request.headers.get("content-type", "")
        if said.lower().startswith("multipart/form-data"):
            row = await self._from_form(request, call)
        else:
            row = await self._uploads.take(
                call,
                request.stream(),
                name=request.query_params.get("name", ""),
                said="" if "x-www-form-urlencoded" in said else said,
                purpose=_purpose(request.query_params.get("purpose", "")),
            )
        document = MessageToDict(file_view(row, self._links.to), always_print_fields_with_no_presence=True)
        return JSONResponse({"file": document}, 201)

    async def _from_form(self, request: Request, call: Call) -> Any:
        limited = Request(request.scope, self._limited(request))
        try:
            # What is large is spooled to a file without a name.
            async with limited.form(max_files=1, max_fields=8, max_part_size=FORM_EXTRA) as form:
                file = form.get("file")
                if not isinstance(file, UploadFile):
                    raise RpcError("INVALID_ARGUMENT", "the form has no part `file` with a file name")
                return await self._uploads.take(
                    call,
                    _pieces(file),
                    name=file.filename or "",
                    said=file.content_type or "",
                    purpose=_purpose(str(form.get("purpose") or "")),
                )
        except (MultiPartException, MultipartParseError, HTTPException, KeyError) as error:
            raise RpcError("MALFORMED_BODY", f"the form cannot be read: {error}"[:300]) from None

    def _limited(self, request: Request) -> Callable[[], Awaitable[Message]]:
        received, limit = 0, self._uploads.limit + FORM_EXTRA

        async def receive() -> Message:
            nonlocal received
            message = await request.receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise RpcError("BODY_TOO_LARGE", f"the file exceeds {self._uploads.limit} bytes")
            return message

        return receive

    async def download(self, request: Request) -> Response:
        """Send a file to whoever has a signed link to it, or a key of its organisation."""
        file_id = request.path_params["file_id"]
        expires, signature = request.query_params.get("expires"), request.query_params.get("signature")
        if expires is not None or signature is not None:
            problem = self._links.problem(file_id, expires or "", signature or "")
            if problem:
                raise RpcError("PERMISSION_DENIED", problem)
            row = await self._files.find(file_id)
            if row is None:
                raise RpcError("NOT_FOUND", f"there is no file {file_id}")
        else:
            call = await self._call(request)
            row = await self._files.of_organisation(call.identity.organisation_id, file_id)
        return await self._sent(request, row)

    async def _sent(self, request: Request, row: Any) -> Response:
        headers = _headers(row)
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        wanted = request.headers.get("range", "")
        if request.headers.get("if-range", headers["etag"]) != headers["etag"]:
            wanted = ""
        span = read_range(wanted, row.size)
        if span is None:
            return Response(status_code=416, headers={**headers, "content-range": f"bytes */{row.size}"})
        start, end = span
        headers["content-length"] = str(end - start)
        status = 200
        if (start, end) != (0, row.size):
            status = 206
            headers["content-range"] = f"bytes {start}-{end - 1}/{row.size}"
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers)
        return StreamingResponse(await self._files.open(row, start, end), status, headers)

    async def receive(self, request: Request) -> Response:
        """Hand a provider's notification on, with its body as it came."""
        pieces, size = [], 0
        async for piece in request.stream():
            size += len(piece)
            if size > NOTIFICATION_LIMIT:
                raise RpcError("BODY_TOO_LARGE", f"the body exceeds {NOTIFICATION_LIMIT} bytes")
            pieces.append(piece)
        headers = {name.lower(): value for name, value in request.headers.items()}
        notification = pb.ReceiveWebhookRequest(
            provider=request.path_params["provider"][:128],
            headers={name: value for name, value in headers.items() if name not in _UNSAFE_HEADERS},
            body=b"".join(pieces),
        )
        call = Call(_request_id(request)).within(RECEIVE_LIMIT_S)
        answer = await self._jobs.receive_webhook(notification, call)
        return JSONResponse({"jobId": answer.job_id})


def read_range(text: str, size: int) -> tuple[int, int] | None:
    """Return the bytes `start` up to, not including, `end` that are asked for; None for none of them.

    Several ranges, and other units, mean the whole file.
    """
    match = _RANGE.match(text.strip())
    if match is None or match.group(1) == match.group(2) == "":
        return 0, size
    first, last = match.group(1), match.group(2)
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1 if last else size)
        if last and int(last) < start:
            return 0, size
    return (start, end) if start < end else None


def _headers(row: Any) -> dict[str, str]:
    """Return headers under which no content can do anything in a browser."""
    shown = row.mime in SHOWN
    name = quote(row.name or row.id, safe="")
    return {
        "content-type": row.mime if shown else "application/octet-stream",
        "content-disposition": f"{'inline' if shown else 'attachment'}; filename*=UTF-8''{name}",
        "x-content-type-options": "nosniff",
        "content-security-policy": "default-src 'none'; sandbox",
        "cross-origin-resource-policy": "cross-origin",
        "referrer-policy": "no-referrer",
        "cache-control": "private, max-age=3600, immutable",
        "accept-ranges": "bytes",
        "etag": f'"{row.sha256}"',
    }


def _purpose(text: str) -> str:
    if text not in ("", *PURPOSES):
        raise RpcError("INVALID_ARGUMENT", f"purpose: expected one of {', '.join(PURPOSES)}")
    return text or UPLOAD


async def _pieces(file: UploadFile) -> AsyncIterator[bytes]:
    while piece := await file.read(PIECE):
        yield piece


def _request_id(request: Request) -> str:
    return request.headers.get("x-omnihub-request-id") or new_id("req")


def _answering(answer: Answer) -> Answer:
    """Return an endpoint that answers errors in the platform's own shape."""

    async def endpoint(request: Request) -> Response:
        try:
            return await answer(request)
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as error:  # noqa: BLE001 - the top: whatever it is, the caller gets an answer
            visible = visible_error(error, request.url.path)
            request_id = _request_id(request)
            headers = {"x-omnihub-request-id": request_id}
            if visible.retry_after_s is not None:
                headers["retry-after"] = str(max(1, round(visible.retry_after_s)))
            if visible.row.http == 401:
                headers["www-authenticate"] = "Bearer"
            return JSONResponse(visible.to_body(request_id), visible.row.http, headers)

    return endpoint
