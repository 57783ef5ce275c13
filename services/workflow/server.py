"""Serves the contracts of the workflow area: message in, admission or store, message out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Any

from omnihub.workflow.v1 import job_service_pb2 as pb
from omnihub.workflow.v1.effect_pb2 import EffectResult
from omnihub.workflow.v1.job_pb2 import Job
from omnihub.workflow.v1alpha1 import workflow_service_pb2

from services.common.page_token import decode_page_token, encode_page_token
from services.common.rpc import Call, RpcError
from services.common.rpc.errors import Violation
from services.workflow.admission import Admission, owner_of
from services.workflow.domain.kinds import KINDS
from services.workflow.domain.states import FINAL, JOB_STATES, QUEUED
from services.workflow.job_view import Link, view
from services.workflow.store.attempts import SECOND
from services.workflow.store.jobs import Jobs

DEFAULT_PAGE = 100
NOT_BUILT = "workflows are not part of this version"
LOOK_S = 0.25


class JobServer:
    """See the contract in omnihub/workflow/v1/job_service.proto."""

    def __init__(
        self,
        jobs: Jobs,
        admission: Admission,
        link: Link,
        wake: Callable[[], None],
        clock: Callable[[], datetime],
        remove_files: Callable[[list[str]], Awaitable[None]] | None = None,
    ) -> None:
        self._remove_files = remove_files
        self._jobs = jobs
        self._admission = admission
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
        rows = await self._jobs.page(
            owner_of(call), size + 1, before, request.kind, request.state, request.parent_job_id
        )
        shown = rows[:size]
        response = pb.ListJobsResponse(jobs=[view(row, self._link) for row in shown])
        if len(rows) > size:
            response.next_page_token = encode_page_token(shown[-1].created_at, shown[-1].id)
        return response

    async def watch_job(self, request: pb.WatchJobRequest, call: Call) -> AsyncIterator[pb.WatchJobResponse]:
        owner, seen = owner_of(call), request.after_version
        while True:
            row = await self._jobs.find(owner, request.job_id)
            if row.state in FINAL and row.settled:
                yield pb.WatchJobResponse(end=await self._view(row))
                return
            if row.version > seen:
                seen = row.version
                yield pb.WatchJobResponse(job=await self._view(row))
            await asyncio.sleep(LOOK_S)

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
        raise RpcError("NOT_IMPLEMENTED", "batches are not part of this version")

    async def receive_webhook(
        self, request: pb.ReceiveWebhookRequest, call: Call
    ) -> pb.ReceiveWebhookResponse:
        raise RpcError("NOT_IMPLEMENTED", "webhooks are not part of this version")

    async def list_dead_letters(
        self, request: pb.ListDeadLettersRequest, call: Call
    ) -> pb.ListDeadLettersResponse:
        raise RpcError("NOT_IMPLEMENTED", "dead letters are not part of this version")

    async def redrive_dead_letter(
        self, request: pb.RedriveDeadLetterRequest, call: Call
    ) -> pb.RedriveDeadLetterResponse:
        raise RpcError("NOT_IMPLEMENTED", "dead letters are not part of this version")

    async def _wait(self, row: Any, wait_s: float) -> Any:
        """Return the ended job, or as it is when the time is over."""
        until = time.monotonic() + wait_s
        while not (row.state in FINAL and row.settled) and time.monotonic() < until:
            await asyncio.sleep(LOOK_S)
            row = await self._jobs.job_of(row.id)
        return row

    async def _view(self, row: Any) -> Job:
        position = await self._jobs.ahead_of(row) if row.state == QUEUED else None
        return view(row, self._link, position)


def _check_filter(request: pb.ListJobsRequest) -> None:
    for field, value, known in (
        ("kind", request.kind, {*KINDS, "batch"}),
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
