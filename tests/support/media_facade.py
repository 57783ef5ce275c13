"""The facade before the real workflow service, with a provider of every kind of media that obeys the test."""

from __future__ import annotations

import asyncio
import io
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from omnihub.billing.v1 import billing_service_pb2 as billing
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.billing.v1.price_pb2 import Price
from omnihub.billing.v1.report_service_api import ReportService
from omnihub.common.v1.chat_pb2 import ParameterReceipt
from omnihub.common.v1.media_pb2 import MediaOutput, MediaUsage
from omnihub.provider.v1 import media_provider_service_pb2 as provider
from omnihub.router.v1 import media_router_service_pb2 as router
from omnihub.router.v1.media_router_service_api import MediaRouterService
from omnihub.router.v1.response_service_api import ResponseService
from omnihub.router.v1.router_service_api import RouterService
from omnihub.workflow.v1.job_service_api import JobService
from PIL import Image

from services.common.rpc import Call, Connector, Identity, Registry, RpcError
from services.common.service import Infrastructure
from services.gateway import app as gateway
from services.gateway.settings import GatewaySettings
from services.listener import HttpListener
from services.workflow import app as workflow
from services.workflow.settings import WorkflowSettings
from tests.support.fakes import Fake, FakeAuthenticator
from tests.support.jobs import CountingRouter
from tests.support.ports import free_port

KEY, OTHER_KEY = "omni_sk_test", "omni_sk_other"
BODY_LIMIT, FILE_LIMIT = 400_000, 100_000
COST = "0.007"
TEXT = "A boat sails."
SEGMENTS = [
    {"id": 0, "start": 0.0, "end": 1.25, "text": " A boat"},
    {"id": 1, "start": 1.25, "end": 3661.5, "text": " sails."},
]
VIDEO = b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 64


class MediaMaker(CountingRouter, Fake):
    """Serves MediaRouterService. Makes what is asked of it; what is not forwarded gets a receipt."""

    def __init__(self) -> None:
        super().__init__(cancels=True)
        # Everything it makes costs the same.
        self.price = Price(version="p1", source="configured", request_pico=7_000_000_000)
        self.attempts: list[provider.MediaAttempt] = []
        self.plans: list[router.PlanMediaRequest] = []
        self.calls: list[Call] = []
        self.entered = asyncio.Event()
        self.spoken: list[router.StreamSpeechRequest] = []
        self.speech: list[router.StreamSpeechResponse | RpcError] = []
        self.refusal: RpcError | None = None
        self.begun: dict[str, provider.MediaAttempt] = {}

    async def plan_media(self, request: router.PlanMediaRequest, call: Call) -> router.PlanMediaResponse:
        self.plans.append(request)
        self.calls.append(call)
        if self.refusal is not None:
            raise self.refusal
        return await super().plan_media(request, call)

    async def submit_media(
        self, request: router.SubmitMediaRequest, call: Call
    ) -> router.SubmitMediaResponse:
        attempt = request.attempt
        self.attempts.append(attempt)
        self.entered.set()
        answer = await super().submit_media(request, call)
        self.begun[answer.response.provider_job_id] = attempt
        if answer.response.HasField("progress") and answer.response.progress.state == "succeeded":
            answer.response.progress.CopyFrom(_made(attempt))
        for name in msgspec.json.decode(attempt.input.extension_json or "{}"):
            answer.response.receipt.append(ParameterReceipt(name=name, outcome="dropped", detail="not known"))
        return answer

    async def stream_speech(
        self, request: router.StreamSpeechRequest, call: Call
    ) -> AsyncIterator[router.StreamSpeechResponse]:
        self.spoken.append(request)
        if not self.speech:
            raise RpcError("NO_CANDIDATE", "nobody speaks while it makes")
        for message in self.speech:
            if isinstance(message, RpcError):
                raise message
            yield message

    async def poll_media(self, request: router.PollMediaRequest, call: Call) -> router.PollMediaResponse:
        answer = await super().poll_media(request, call)
        if answer.progress.state == "succeeded":
            answer.progress.CopyFrom(_made(self.begun[request.request.provider_job_id]))
        return answer


def a_picture(width: int = 8, height: int = 8, color: str = "red") -> bytes:
    """Return a PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), color).save(buffer, "PNG")
    return buffer.getvalue()


def a_recording() -> bytes:
    """Return a WAV of a tenth of a second."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(8000)
        writer.writeframes(bytes(1600))
    return buffer.getvalue()


def _made(attempt: provider.MediaAttempt) -> provider.MediaProgress:
    given = attempt.input
    progress = provider.MediaProgress(state="succeeded")
    match given.WhichOneof("kind"):
        case "image" | "image_edit":
            asked: Any = given.image if given.HasField("image") else given.image_edit
            for _ in range(asked.count or 1):
                width, height = asked.width or 8, asked.height or 8
                facts = MediaOutput(mime="image/png", width=width, height=height, revised_prompt="a red boat")
                progress.outputs.append(provider.ProviderOutput(data=a_picture(width, height), facts=facts))
        case "speech":
            facts = MediaOutput(mime="audio/wav", sample_rate=8000)
            progress.outputs.append(provider.ProviderOutput(data=a_recording(), facts=facts))
            progress.usage.characters = len(given.speech.text)
        case "transcription":
            details = {"language": "english", "duration": 3.5, "segments": SEGMENTS}
            wanted = given.transcription.format
            facts = MediaOutput(
                details_json="" if wanted == "json" else msgspec.json.encode(details).decode()
            )
            progress.outputs.append(provider.ProviderOutput(text=TEXT, facts=facts))
            progress.usage.CopyFrom(MediaUsage(seconds=3.5))
        case "video":
            facts = MediaOutput(mime="video/mp4", width=1280, height=720, duration_s=4)
            progress.outputs.append(provider.ProviderOutput(data=VIDEO, facts=facts))
    return progress


class Till(Fake):
    """Takes holds and charges, in memory."""

    def __init__(self) -> None:
        self.holds: dict[str, int] = {}
        self.charges: dict[str, int] = {}
        self.released: set[str] = set()
        self.release = asyncio.Event()

    async def create_hold(self, request: Any, call: Call) -> Any:
        self.holds[request.hold_id] = request.amount_nano_credits
        return billing.CreateHoldResponse()

    async def release_hold(self, request: Any, call: Call) -> Any:
        self.released.add(request.hold_id)
        self.release.set()
        return billing.ReleaseHoldResponse()

    async def settle(self, request: Any, call: Call) -> Any:
        for charge in request.charges:
            self.charges[charge.charge_id] = charge.amount_nano_credits
        return billing.SettleResponse()


@dataclass
class MediaFacade:
    """A running facade, and what is behind it."""

    url: str
    maker: MediaMaker
    till: Till
    jobs: JobService
    caller: Call
    """What the service behind it is called with, for the first key."""


@asynccontextmanager
async def running_media_facade(folder: Path, provenance: bool = False) -> AsyncIterator[MediaFacade]:
    """Serve gateway, workflow and worker on a free port, with their own SQLite file.

    Without `provenance` outputs are what the maker made, byte for byte.
    """
    maker, till = MediaMaker(), Till()
    registry = Registry()
    registry.add(MediaRouterService, maker)
    registry.add(BillingService, till)
    registry.add(ReportService, Fake())
    registry.add(RouterService, Fake())
    registry.add(ResponseService, Fake())
    identities = {
        KEY: Identity(organisation_id="org_1", key_id="key_1", scopes=frozenset({"chat"})),
        OTHER_KEY: Identity(organisation_id="org_2", key_id="key_2", scopes=frozenset({"chat"})),
    }
    authenticator: Any = FakeAuthenticator(**identities)
    infrastructure = Infrastructure(
        connector=Connector(registry, {}), data_dir=folder, authenticator=authenticator
    )
    settings = WorkflowSettings(provenance=provenance)
    jobs = workflow.build(settings, infrastructure, public_url="http://hub.test")
    worker = workflow.build_worker(settings, infrastructure, public_url="")
    for interface, implementation in jobs.interfaces:
        registry.add(interface, implementation)
    limits = GatewaySettings(body_limit_bytes=BODY_LIMIT, file_limit_bytes=FILE_LIMIT)
    facade = gateway.build(limits, infrastructure)

    async def no_problems() -> dict[str, str]:
        return {}

    port = free_port()
    listener = HttpListener(f"127.0.0.1:{port}", facade.routes, no_problems, 1)
    await jobs.start()
    await worker.start()
    await listener.start()
    try:
        client = infrastructure.connector.connect(JobService, "workflow")
        yield MediaFacade(f"http://127.0.0.1:{port}", maker, till, client, Call("req_1", identities[KEY]))
    finally:
        await listener.stop()
        await facade.stop()
        await worker.stop()
        await jobs.stop()
