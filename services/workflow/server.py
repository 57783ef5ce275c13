"""Serves the contracts of the workflow area: message in, admission or store, message out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Any

from omnihub.workflow.v1 import job_service_pb2 as pb
from omnihub.workflow.v1.effect_pb2 import EffectResult
from omnihub.workflow.v1.job_pb2 import Job, JobError
from omnihub.workflow.v1alpha1 import workflow_service_pb2

from services.common.page_token import decode_page_token, encode_page_token
from services.common.rpc import Call, RpcError
from services.common.rpc.errors import Violation
from services.workflow.admission import Admission, owner_of
from services.workflow.batch_admission import BatchAdmission
from services.workflow.desk import Desk
from services.workflow.domain.errors import JobNotFoundError
from services.workflow.domain.kinds import BATCH_KIND, KINDS
from services.workflow.domain.states import JOB_STATES, QUEUED, is_over
from services.workflow.job_view import Link, count_items, letter_view, view
from services.workflow.store.batches import Batches
from services.workflow.store.records import SECOND

DEFAULT_PAGE = 100
NOT_BUILT = "workflows are not part of this version"
LOOK_S = 0.25


class JobServer:
    """See the contract in omnihub/workflow/v1/job_service.proto."""

    def __init__(
        self,
        jobs: Batches,
        admission: Admission,
        desk: Desk,
        link: Link,
        wake: Callable[[], None],
        clock: Callable[[], datetime],
        remove_files: Callable[[list[str]], Awaitable[None]] | None = None,
    ) -> None:
        self._remove_files = remove_files
        self._jobs = jobs
        self._admission = admission
        self._batches = BatchAdmission(admission, jobs)
        self._desk = desk
        self._link = link
        self._wake = wake
        self._clock = clock

    async def create_job(self, request: pb.CreateJobRequest, call: Call) -> pb.CreateJobResponse:
        row = await self._admission.begin(request, call)
        self._wake()
        if request.wait_s:
            row = await self._wait(row, request.wait_s)
        return pb.CreateJobResponse(job=await self._view(row))

    async def create_voice_job(
        self, request: pb.CreateVoiceJobRequest, call: Call
    ) -> pb.CreateVoiceJobResponse:
        wanted = pb.CreateJobRequest(
            model=request.model, idempotency_key=request.idempotency_key, wait_s=request.wait_s
        )
        speech = wanted.input.speech
        speech.text, speech.voice, speech.format = request.text, request.voice, request.format
        speech.language, speech.speed = request.language, request.speed
        return pb.CreateVoiceJobResponse(job=(await self.create_job(wanted, call)).job)

    async def get_job(self, request: pb.GetJobRequest, call: Call) -> pb.GetJobResponse:
        row = await self._jobs.find(owner_of(call), request.job_id)
        return pb.GetJobResponse(job=await self._view(row))

    async def list_jobs(self, request: pb.ListJobsRequest, call: Call) -> pb.ListJobsResponse:
        _check_filter(request)
        size = request.page_size or DEFAULT_PAGE
        before = _before(request.page_token)
        if request.after_job_id:
            last = await self._jobs.find(owner_of(call), request.after_job_id)
            before = last.created_at, last.id
        rows = await self._jobs.page(
            owner_of(call), size + 1, before, request.kind, request.state, request.parent_job_id
        )
        shown = rows[:size]
        response = pb.ListJobsResponse(jobs=[view(row, self._link) for row in shown])
        counts = await self._jobs.counts([row.id for row in shown if row.kind == BATCH_KIND])
        for job in response.jobs:
            if job.kind == BATCH_KIND:
                count_items(job, counts[job.job_id])
        if len(rows) > size:
            place = shown[-1].item_index if request.parent_job_id else shown[-1].created_at
            response.next_page_token = encode_page_token(place, shown[-1].id)
        return response

    async def watch_job(self, request: pb.WatchJobRequest, call: Call) -> AsyncIterator[pb.WatchJobResponse]:
        owner, seen = owner_of(call), request.after_version
        row = await self._jobs.find(owner, request.job_id)
        while True:
            if is_over(row.state, row.settled, row.parallel):
                yield pb.WatchJobResponse(end=await self._view(row))
                return
            if row.version > seen:
                seen = row.version
                yield pb.WatchJobResponse(job=await self._view(row))
            await asyncio.sleep(LOOK_S)
            try:
                row = await self._jobs.find(owner, request.job_id)
            except JobNotFoundError as error:
                # It has been removed meanwhile.
                yield pb.WatchJobResponse(error=JobError(reason=error.reason, message=error.message))
                raise

    async def cancel_job(self, request: pb.CancelJobRequest, call: Call) -> pb.CancelJobResponse:
        await self._jobs.find(owner_of(call), request.job_id)
        row = await self._jobs.cancel(request.job_id, round(self._clock().timestamp() * SECOND))
        self._wake()
        return pb.CancelJobResponse(job=await self._view(row))

    async def delete_job(self, request: pb.DeleteJobRequest, call: Call) -> pb.DeleteJobResponse:
        result = EffectResult.FromString(await self._jobs.remove(owner_of(call), request.job_id))
        files = [output.file_id for output in result.outputs if output.file_id]
        if files and self._remove_files is not None:
            await self._remove_files(files)
        return pb.DeleteJobResponse()

    async def create_batch(self, request: pb.CreateBatchRequest, call: Call) -> pb.CreateBatchResponse:
        row = await self._batches.begin(request, call)
        self._wake()
        return pb.CreateBatchResponse(job=await self._view(row))

    async def receive_webhook(
        self, request: pb.ReceiveWebhookRequest, call: Call
    ) -> pb.ReceiveWebhookResponse:
        job_id = await self._desk.receive(request, call)
        self._wake()
        return pb.ReceiveWebhookResponse(job_id=job_id)

    async def list_dead_letters(
        self, request: pb.ListDeadLettersRequest, call: Call
    ) -> pb.ListDeadLettersResponse:
        size = request.page_size or DEFAULT_PAGE
        rows = await self._desk.letters(size + 1, _before(request.page_token))
        response = pb.ListDeadLettersResponse(dead_letters=[letter_view(row) for row in rows[:size]])
        if len(rows) > size:
            response.next_page_token = encode_page_token(rows[size - 1].at, rows[size - 1].id)
        return response

    async def redrive_dead_letter(
        self, request: pb.RedriveDeadLetterRequest, call: Call
    ) -> pb.RedriveDeadLetterResponse:
        job_id = await self._desk.redrive(request.dead_letter_id)
        self._wake()
        return pb.RedriveDeadLetterResponse(job_id=job_id)

    async def _wait(self, row: Any, wait_s: float) -> Any:
        """Return the ended job, or as it is when the time is over."""
        until = time.monotonic() + wait_s
        while not is_over(row.state, row.settled, row.parallel) and time.monotonic() < until:
            await asyncio.sleep(LOOK_S)
            row = await self._jobs.job_of(row.id)
        return row

    async def _view(self, row: Any) -> Job:
        position = await self._jobs.ahead_of(row) if row.state == QUEUED else None
        message = view(row, self._link, position)
        if row.kind == BATCH_KIND:
            count_items(message, (await self._jobs.counts([row.id]))[row.id])
        return message


def _check_filter(request: pb.ListJobsRequest) -> None:
    for field, value, known in (
        ("kind", request.kind, {*KINDS, BATCH_KIND}),
        ("state", request.state, JOB_STATES),
    ):
        if value and value not in known:
            rule = f"expected one of {', '.join(sorted(known))}"
            raise RpcError("INVALID_ARGUMENT", f"{field}: {rule}", violations=[Violation(field, rule)])


def _before(token: str) -> tuple[int, str] | None:
    if not token:
        return None
    created_at, job_id = decode_page_token(token, 2)
    if not created_at.isdigit():
        raise RpcError("INVALID_ARGUMENT", "page_token: not one of ours")
    return int(created_at), job_id


class WorkflowServer:
    """Says honestly that workflows are not built yet."""

    async def start_run(
        self, request: workflow_service_pb2.StartRunRequest, call: Call
    ) -> workflow_service_pb2.StartRunResponse:
        raise RpcError("NOT_IMPLEMENTED", NOT_BUILT)

    async def get_run(
        self, request: workflow_service_pb2.GetRunRequest, call: Call
    ) -> workflow_service_pb2.GetRunResponse:
        raise RpcError("NOT_IMPLEMENTED", NOT_BUILT)
