"""POST /v1/images/generations and POST /v1/images/edits."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
from omnihub.common.v1.media_pb2 import MediaInput, MediaOutput, MediaUsage
from omnihub.workflow.v1 import job_service_pb2 as pb
from omnihub.workflow.v1.job_pb2 import Job

from services.common.log import RequestEvent
from services.common.rpc import Call
from services.formats.errors import invalid
from services.gateway.chat import EVENT_STREAM
from services.gateway.exchange import Exchange
from services.gateway.media.fields import Fields, read_fields
from services.gateway.media.generations import Generations
from services.gateway.settings import GatewaySettings

NAMES = {
    "count": "n",
    "width": "size",
    "height": "size",
    "format": "output_format",
    "images": "image",
    # When a picture as a whole is refused, it is its size.
    "image": "size",
    "aspect_ratio": "size",
}
MOST_IMAGES = 10
MOST_SOURCES = 16
FORMATS = ("png", "jpeg", "webp")


class ImagesEndpoint:
    """Makes or changes pictures while the caller waits."""

    def __init__(self, generations: Generations, settings: GatewaySettings) -> None:
        self._generations = generations
        self._settings = settings

    async def generate(self, exchange: Exchange, call: Call, event: RequestEvent) -> None:
        """Serve POST /v1/images/generations."""
        fields = await self._read(exchange)
        given = MediaInput()
        image = given.image
        image.prompt = fields.text("prompt", required=True)
        image.count = fields.whole("n", 1, MOST_IMAGES) or 0
        image.width, image.height = fields.size()
        image.format = fields.choice("output_format", FORMATS)
        image.quality, image.style = fields.text("quality"), fields.text("style")
        image.background = fields.text("background")
        image.negative_prompt = fields.text("negative_prompt")
        seed = fields.whole("seed", 0, 2**32 - 1)
        if seed is not None:
            image.seed = seed
        await self._serve(exchange, call, event, given, fields, "image_generation")

    async def edit(self, exchange: Exchange, call: Call, event: RequestEvent) -> None:
        """Serve POST /v1/images/edits."""
        fields = await self._read(exchange)
        given = MediaInput()
        edit = given.image_edit
        edit.prompt = fields.text("prompt", required=True)
        sources = fields.files("image", "images")
        if not 1 <= len(sources) <= MOST_SOURCES:
            raise invalid("image", f"expected 1 to {MOST_SOURCES} pictures, found {len(sources)}")
        edit.images.extend(sources)
        mask = fields.file("mask")
        if mask is not None:
            edit.mask.CopyFrom(mask)
        edit.count = fields.whole("n", 1, MOST_IMAGES) or 0
        edit.width, edit.height = fields.size()
        edit.format = fields.choice("output_format", FORMATS)
        edit.quality, edit.background = fields.text("quality"), fields.text("background")
        await self._serve(exchange, call, event, given, fields, "image_edit")

    async def _read(self, exchange: Exchange) -> Fields:
        return await read_fields(exchange, self._settings.body_limit_bytes, self._settings.file_limit_bytes)

    async def _serve(
        self,
        exchange: Exchange,
        call: Call,
        event: RequestEvent,
        given: MediaInput,
        fields: Fields,
        stream_name: str,
    ) -> None:
        request = pb.CreateJobRequest(model=fields.text("model"), input=given)
        as_url = fields.choice("response_format", ("url", "b64_json")) == "url"
        streamed = fields.flag("stream")
        if streamed and as_url:
            raise invalid("response_format", "a stream carries b64_json")
        fields.unused("partial_images", "pictures are sent when they are complete")
        job = await self._generations.run(exchange, call, event, request, fields, NAMES)
        if streamed:
            await self._stream(exchange, call, job, stream_name)
        else:
            await self._answer(exchange, call, job, as_url=as_url)

    async def _answer(self, exchange: Exchange, call: Call, job: Job, *, as_url: bool) -> None:
        data = []
        for output in job.outputs:
            entry: dict[str, Any] = {"url": output.url} if as_url else await self._encoded(output, call)
            if output.revised_prompt:
                entry["revised_prompt"] = output.revised_prompt
            data.append(entry)
        document = {"created": job.created_at.seconds, "data": data, **_facts(job)}
        await exchange.respond(200, msgspec.json.encode(document))

    async def _stream(self, exchange: Exchange, call: Call, job: Job, name: str) -> None:
        """Send each picture as one event, as OpenAI sends the last of a stream."""
        await exchange.start(200, EVENT_STREAM)
        kind = f"{name}.completed"
        for output in job.outputs:
            facts = {"type": kind, "created_at": job.created_at.seconds, **_facts(job)}
            document = msgspec.json.encode({**facts, **await self._encoded(output, call)})
            await exchange.write(b"event: %b\ndata: %b\n\n" % (kind.encode(), document), more=True)
        await exchange.write(b"", more=False)

    async def _encoded(self, output: MediaOutput, call: Call) -> dict[str, Any]:
        data = await self._generations.read_whole(output.file_id, call)
        return {"b64_json": base64.b64encode(data).decode("ascii")}


def _facts(job: Job) -> dict[str, Any]:
    """Return what OpenAI says of the pictures beside them."""
    facts: dict[str, Any] = {}
    if job.outputs:
        first = job.outputs[0]
        facts["output_format"] = first.mime.rpartition("/")[2]
        if first.width and first.height:
            facts["size"] = f"{first.width}x{first.height}"
    asked = job.input.image if job.input.HasField("image") else job.input.image_edit
    for name in ("quality", "background"):
        if value := getattr(asked, name):
            facts[name] = value
    if usage := _usage(job.usage):
        facts["usage"] = usage
    return facts


def _usage(usage: MediaUsage) -> dict[str, Any]:
    tokens = usage.tokens
    if not (tokens.input_total or tokens.output_total):
        return {}
    return {
        "input_tokens": tokens.input_total,
        "output_tokens": tokens.output_total,
        "total_tokens": tokens.input_total + tokens.output_total,
        "input_tokens_details": {
            "image_tokens": tokens.input_image,
            "text_tokens": tokens.input_total - tokens.input_image,
        },
    }
