"""The facade's side of jobs: begin one, wait for its end, stop it when its caller leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from omnihub.common.v1.chat_pb2 import ParameterReceipt
from omnihub.workflow.v1 import file_content_service_pb2 as content
from omnihub.workflow.v1 import job_service_pb2 as pb
from omnihub.workflow.v1.file_content_service_api import FileContentService
from omnihub.workflow.v1.job_pb2 import Job
from omnihub.workflow.v1.job_service_api import JobService

from services.common.log import RequestEvent
from services.common.rpc import Call, RpcError
from services.common.rpc.errors import TABLE, Violation
from services.formats.errors import FormatError, invalid
from services.gateway.chat import checked_model, is_strict, receipt_header, told
from services.gateway.exchange import Exchange, header_value
from services.gateway.media.fields import Fields

IDEMPOTENCY_KEY = "idempotency-key"
KEY_LIMIT = 128
CANCEL_LIMIT_S = 10.0
# How often a watch that breaks off is begun again, each time after twice the pause.
RENEWALS = 6
PAUSE_S = 0.1
ENDED = ("succeeded", "failed", "cancelled", "expired")
_INPUT = "input."


class Generations:
    """Jobs of the facade's callers."""

    def __init__(self, jobs: JobService, contents: FileContentService) -> None:
        self.jobs = jobs
        self._contents = contents
        self._leaving: set[asyncio.Task[None]] = set()

    async def run(
        self,
        exchange: Exchange,
        call: Call,
        event: RequestEvent,
        request: pb.CreateJobRequest,
        fields: Fields,
        names: Mapping[str, str],
    ) -> Job:
        """Make something while the caller waits and return its succeeded job. Raises RpcError.

        `names` says what OpenAI calls the fields of the input. The job of a caller who leaves is cancelled,
        unless an idempotency key says that the caller comes back for it.
        """
        job = await self.begin(exchange, call, event, request, fields, names)
        try:
            job = await self.ended(job, call)
        except asyncio.CancelledError:
            if not request.idempotency_key:
                self._leave(self._cancel(job.job_id, call))
            raise
        event.fields.update(model_used=job.model_used, cost=job.cost, state=job.state)
        if job.state != "succeeded":
            raise _failure(job, names)
        exchange.own_headers += ending_headers(job, fields.receipt)
        return job

    async def begin(
        self,
        exchange: Exchange,
        call: Call,
        event: RequestEvent,
        request: pb.CreateJobRequest,
        fields: Fields,
        names: Mapping[str, str],
    ) -> Job:
        """Begin a job with what is common to all requests. Raises RpcError and FormatError."""
        checked_model(request.model)
        event.fields["model"] = request.model
        request.input.extension_json = fields.rest_json()
        request.strict = is_strict(exchange.headers)
        request.idempotency_key = _key_in(exchange)
        if request.strict and fields.receipt:
            first = fields.receipt[0]
            raise FormatError(
                "PARAMETER_UNSUPPORTED", f"{first.name}: {first.detail}", first.name, first.detail
            )
        beginning = asyncio.ensure_future(self.jobs.create_job(request, call))
        try:
            job = (await asyncio.shield(beginning)).job
        except asyncio.CancelledError:
            if not request.idempotency_key:
                self._leave(self._cancel_begun(beginning, call))
            raise
        except RpcError as error:
            raise in_words_of(error, names) from None
        event.fields["job_id"] = job.job_id
        exchange.own_headers.append((b"x-omnihub-job-id", header_value(job.job_id)))
        return job

    async def ended(self, job: Job, call: Call) -> Job:
        """Return the job once it has ended. A watch that breaks off is begun again. Raises RpcError."""
        pause, left = PAUSE_S, RENEWALS
        while True:
            request = pb.WatchJobRequest(job_id=job.job_id, after_version=job.version)
            stream: Any = self.jobs.watch_job(request, call)
            try:
                async with aclosing(stream):
                    async for message in stream:
                        if message.HasField("end"):
                            return message.end  # type: ignore[no-any-return]
                        pause, left = PAUSE_S, RENEWALS
            except RpcError as error:
                if error.reason != "UNAVAILABLE" or not left:
                    raise
            if not left:
                raise RpcError("UNAVAILABLE", f"the job {job.job_id} goes on, but cannot be watched")
            left -= 1
            await asyncio.sleep(pause)
            pause *= 2

    async def read(self, file_id: str, call: Call) -> AsyncGenerator[bytes, None]:
        """Yield a file in pieces."""
        stream: Any = self._contents.read_file(content.ReadFileRequest(file_id=file_id), call)
        async with aclosing(stream):
            async for message in stream:
                if message.HasField("data"):
                    yield message.data

    async def read_whole(self, file_id: str, call: Call) -> bytes:
        """Return a file."""
        return b"".join([piece async for piece in self.read(file_id, call)])

    def _leave(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _cancel_begun(self, beginning: asyncio.Future[pb.CreateJobResponse], call: Call) -> None:
        try:
            job = (await beginning).job
        except RpcError:
            return
        await self._cancel(job.job_id, call)

    async def _cancel(self, job_id: str, call: Call) -> None:
        request = pb.CancelJobRequest(job_id=job_id)
        try:
            await self.jobs.cancel_job(request, call.within(CANCEL_LIMIT_S))
        except RpcError:
            # It ends by itself, at its deadline at the latest.
            return

    async def stop(self) -> None:
        """Wait until what callers have left behind is cancelled."""
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=CANCEL_LIMIT_S)


def _key_in(exchange: Exchange) -> str:
    key = exchange.headers.get(IDEMPOTENCY_KEY, "")
    if len(key) > KEY_LIMIT or not (key.isascii() and key.isprintable()):
        raise invalid("Idempotency-Key", f"expected at most {KEY_LIMIT} printable ASCII characters")
    return str(key)


def _failure(job: Job, names: Mapping[str, str]) -> RpcError:
    """Return the error of a job that has not succeeded."""
    told_by = {"job_id": job.job_id}
    if job.state == "cancelled":
        return RpcError("CANCELLED", f"the job {job.job_id} was cancelled", metadata=told_by)
    reason = job.error.reason if job.error.reason in TABLE else "INTERNAL"
    message = job.error.message or f"the job {job.job_id} ended as {job.state}"
    field, separator, description = message.partition(": ")
    violations = []
    if separator and field.startswith(_INPUT):
        violations.append(Violation(field, description))
    return in_words_of(RpcError(reason, message, violations=violations, metadata=told_by), names)


def in_words_of(error: RpcError, names: Mapping[str, str]) -> RpcError:
    """Return an error that names fields as the caller wrote them."""
    if not error.violations:
        return error
    violations = [
        Violation(_renamed(violation.field, names), violation.description) for violation in error.violations
    ]
    message = error.message
    if message.startswith(f"{error.violations[0].field}: "):
        message = violations[0].field + message[len(error.violations[0].field) :]
    return RpcError(
        error.reason,
        message,
        metadata=error.metadata,
        violations=violations,
        retry_after_s=error.retry_after_s,
    )


def _renamed(field: str, names: Mapping[str, str]) -> str:
    """Return OpenAI's name of `input.image.count`, or what is behind the last point."""
    if not field.startswith(_INPUT):
        return field
    last: str = field.rpartition(".")[2]
    return names.get(last, last)


def ending_headers(job: Job, receipt: Sequence[ParameterReceipt] = ()) -> list[tuple[bytes, bytes]]:
    """Return the headers that say what became of an ended job."""
    headers = [
        (b"x-omnihub-model", header_value(job.model_used)),
        (b"x-omnihub-provider", header_value(job.model_used.partition("/")[0])),
        (b"x-omnihub-cost", job.cost.encode()),
    ]
    if entries := told([*receipt, *job.receipt]):
        headers.append((b"x-omnihub-receipt", receipt_header(entries)))
    return headers
