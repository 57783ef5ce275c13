"""/v1/videos: begin, look, list, download, change and remove videos. Nothing here waits for a video."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any
from urllib.parse import parse_qs

import msgspec
from omnihub.common.v1.media_pb2 import MediaInput, MediaOutput
from omnihub.workflow.v1 import job_service_pb2 as pb
from omnihub.workflow.v1.job_pb2 import Job

from services.common.log import RequestEvent
from services.common.rpc import Call, RpcError
from services.common.rpc.errors import TABLE
from services.formats.errors import invalid
from services.gateway.exchange import Exchange, header_value
from services.gateway.media.fields import Fields, read_fields
from services.gateway.media.generations import (
    CANCEL_LIMIT_S,
    ENDED,
    Generations,
    ending_headers,
)
from services.gateway.settings import GatewaySettings

NAMES = {
    "duration_s": "seconds",
    "width": "size",
    "height": "size",
    "first_frame": "input_reference",
    "remix_of_job_id": "video_id",
}
LONGEST_S = 3600
PAGE = 20
LARGEST_PAGE = 100
# A GET has no body to speak of.
NO_BODY = 1024
_STATUS = {
    "queued": "queued",
    "succeeded": "completed",
    "running": "in_progress",
    "cancel_requested": "in_progress",
}
_VARIANTS = {"video": "video/", "thumbnail": "image/", "spritesheet": "image/"}


class VideosEndpoint:
    """Videos in OpenAI's shape."""

    def __init__(self, generations: Generations, settings: GatewaySettings) -> None:
        self._generations = generations
        self._settings = settings

    async def create(self, exchange: Exchange, call: Call, event: RequestEvent) -> None:
        """Serve POST /v1/videos."""
        fields = await self._read(exchange)
        given = MediaInput()
        video = given.video
        video.prompt = fields.text("prompt", required=True)
        video.duration_s = fields.number("seconds", 1, LONGEST_S) or 0
        video.width, video.height = fields.size()
        reference = fields.file("input_reference")
        if reference is not None:
            video.first_frame.CopyFrom(reference)
        request = pb.CreateJobRequest(model=fields.text("model"), input=given)
        job = await self._generations.begin(exchange, call, event, request, fields, NAMES)
        await _respond(exchange, job)

    async def remix(self, exchange: Exchange, call: Call, event: RequestEvent) -> None:
        """Serve POST /v1/videos/{video_id}/remix."""
        fields = await self._read(exchange)
        source = await self._video(exchange, call)
        _expect_completed(source)
        given = MediaInput()
        given.video.prompt = fields.text("prompt", required=True)
        given.video.remix_of_job_id = source.job_id
        # Only who made it can change it.
        request = pb.CreateJobRequest(model=source.model_used, input=given)
        job = await self._generations.begin(exchange, call, event, request, fields, NAMES)
        await _respond(exchange, job)

    async def retrieve(self, exchange: Exchange, call: Call, event: RequestEvent) -> None:
        """Serve GET /v1/videos/{video_id}."""
        job = await self._video(exchange, call)
        if job.state in ENDED:
            exchange.own_headers += ending_headers(job)
        await _respond(exchange, job)

    async def list_all(self, exchange: Exchange, call: Call, event: RequestEvent) -> None:
        """Serve GET /v1/videos."""
        query = Fields(_query(exchange), {})
        size = query.whole("limit", 1, LARGEST_PAGE) or PAGE
        query.choice("order", ("desc",))
        request = pb.ListJobsRequest(page_size=size, kind="video", after_job_id=query.text("after"))
        answer = await self._generations.jobs.list_jobs(request, call)
        data = [_document(job) for job in answer.jobs]
        ends = (data[0]["id"], data[-1]["id"]) if data else (None, None)
        document = {
            "object": "list",
            "data": data,
            "first_id": ends[0],
            "last_id": ends[1],
            "has_more": bool(answer.next_page_token),
        }
        await exchange.respond(200, msgspec.json.encode(document))

    async def remove(self, exchange: Exchange, call: Call, event: RequestEvent) -> None:
        """Serve DELETE /v1/videos/{video_id}. One that is being made is stopped first."""
        job = await self._video(exchange, call)
        if job.state not in ENDED:
            cancelled = await self._generations.jobs.cancel_job(pb.CancelJobRequest(job_id=job.job_id), call)
            job = cancelled.job
        # One that has just ended is still being paid.
        await self._stopped(job, call)
        await self._generations.jobs.delete_job(pb.DeleteJobRequest(job_id=job.job_id), call)
        document = {"id": job.job_id, "object": "video.deleted", "deleted": True}
        await exchange.respond(200, msgspec.json.encode(document))

    async def _stopped(self, job: Job, call: Call) -> None:
        try:
            await self._generations.ended(job, call.within(CANCEL_LIMIT_S))
        except RpcError as error:
            if error.reason != "DEADLINE_EXCEEDED":
                raise
            message = f"the video {job.job_id} is being stopped; delete it again in a moment"
            raise RpcError("PRECONDITION_FAILED", message, retry_after_s=CANCEL_LIMIT_S) from None

    async def download(self, exchange: Exchange, call: Call, event: RequestEvent) -> None:
        """Serve GET /v1/videos/{video_id}/content."""
        await exchange.read_body(NO_BODY)
        variant = Fields(_query(exchange), {}).choice("variant", tuple(_VARIANTS), "video")
        job = await self._video(exchange, call)
        _expect_completed(job)
        output = _output(job, variant)
        kind = (b"content-type", header_value(output.mime))
        exchange.bare = True
        await exchange.start(200, [kind, (b"content-length", str(round(output.size)).encode())])
        content = self._generations.read(output.file_id, call)
        async with aclosing(content):
            async for piece in content:
                await exchange.write(piece, more=True)
        await exchange.write(b"", more=False)

    async def _read(self, exchange: Exchange) -> Fields:
        return await read_fields(exchange, self._settings.body_limit_bytes, self._settings.file_limit_bytes)

    async def _video(self, exchange: Exchange, call: Call) -> Job:
        """Return the job of a path. Raises RpcError, also when it makes something else."""
        video_id = exchange.path_params["video_id"]
        answer = await self._generations.jobs.get_job(pb.GetJobRequest(job_id=video_id), call)
        if answer.job.kind != "video":
            raise RpcError("NOT_FOUND", f"there is no video {video_id}")
        exchange.own_headers.append((b"x-omnihub-job-id", header_value(video_id)))
        return answer.job


def _query(exchange: Exchange) -> dict[str, str]:
    found = parse_qs(exchange.query_string.decode("latin-1"), keep_blank_values=True)
    return {name: values[-1] for name, values in found.items()}


def _expect_completed(job: Job) -> None:
    if job.state != "succeeded":
        status = _STATUS.get(job.state, "failed")
        raise RpcError(
            "PRECONDITION_FAILED", f"the video {job.job_id} is {status}; this needs one that is completed"
        )


def _output(job: Job, variant: str) -> MediaOutput:
    found = [output for output in job.outputs if output.mime.startswith(_VARIANTS[variant])]
    if not found:
        raise invalid("variant", f"this video has no {variant}")
    return found[0]


async def _respond(exchange: Exchange, job: Job) -> None:
    await exchange.respond(200, msgspec.json.encode(_document(job)))


def _document(job: Job) -> dict[str, Any]:
    """Return the video as OpenAI writes it."""
    asked = job.input.video
    document: dict[str, Any] = {
        "id": job.job_id,
        "object": "video",
        "created_at": job.created_at.seconds,
        "status": _STATUS.get(job.state, "failed"),
        "model": job.model_used or job.model,
        "progress": 100 if job.state == "succeeded" else round(job.progress * 100),
        "prompt": asked.prompt,
        "seconds": _seconds(job),
        "size": _size(job),
        "remixed_from_video_id": asked.remix_of_job_id or None,
        "completed_at": job.ended_at.seconds if job.HasField("ended_at") else None,
        "expires_at": None,
        "error": _error(job),
    }
    return document


def _seconds(job: Job) -> str:
    made = next(
        (output.duration_s for output in job.outputs if output.duration_s), job.input.video.duration_s
    )
    return f"{made:g}" if made else ""


def _size(job: Job) -> str:
    asked = job.input.video
    sizes = [(output.width, output.height) for output in job.outputs if output.mime.startswith("video/")]
    width, height = next((size for size in sizes if all(size)), (asked.width, asked.height))
    return f"{width}x{height}" if width and height else ""


def _error(job: Job) -> dict[str, str] | None:
    if job.HasField("error"):
        row = TABLE.get(job.error.reason, TABLE["INTERNAL"])
        return {"code": row.openai_code or row.reason.lower(), "message": job.error.message}
    if job.state in ("cancelled", "expired"):
        return {"code": job.state, "message": f"the video was {job.state}"}
    return None
