"""A media router and a counting provider behind it, for the engine of jobs."""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from typing import Any

from omnihub.billing.v1.price_pb2 import Price
from omnihub.common.v1.media_pb2 import MediaOutput, MediaUsage
from omnihub.provider.v1 import media_provider_service_pb2 as provider
from omnihub.router.v1 import media_router_service_pb2 as router
from PIL import Image

from services.common.rpc import Call, RpcError


def _picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


PRICE = Price(version="p1", source="configured", image_pico=7_000_000_000)
# A real picture: what is not what it is said to be is refused.
PNG = _picture()


class CountingRouter:
    """Serves MediaRouterService. Counts what it is asked, by effect key; says what a test wants said."""

    def __init__(self, immediate: bool = True, polls: int = 1, **capabilities: Any) -> None:
        self.immediate = immediate
        self.polls = polls
        self.capabilities = capabilities
        self.targets = 1
        self.names: list[str] = []
        self.price = PRICE
        self.estimate = 10_000_000
        self.submitted: Counter[str] = Counter()
        self.cancelled: list[str] = []
        self.failures: list[RpcError] = []
        self.lose_answers = 0
        self.jobs: dict[str, int] = {}
        self.by_effect: dict[str, str] = {}
        self.gate = asyncio.Event()
        self.gate.set()

    async def plan_media(self, request: router.PlanMediaRequest, call: Call) -> router.PlanMediaResponse:
        targets = [
            router.MediaTarget(
                provider=self.names[index] if self.names else f"fake{index}",
                model="m",
                estimate_nano_credits=self.estimate,
                price=self.price,
                immediate=self.immediate,
                **self.capabilities,
            )
            for index in range(self.targets)
        ]
        return router.PlanMediaResponse(targets=targets)

    async def submit_media(
        self, request: router.SubmitMediaRequest, call: Call
    ) -> router.SubmitMediaResponse:
        key = request.attempt.effect_key
        self.submitted[key] += 1
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        response = provider.SubmitMediaResponse()
        if self.immediate:
            response.progress.CopyFrom(_done())
        else:
            response.provider_job_id = self.by_effect.setdefault(key, f"pj-{len(self.by_effect)}")
            self.jobs[response.provider_job_id] = self.polls
            response.progress.state = "queued"
        if self.lose_answers:
            self.lose_answers -= 1
            raise RpcError("DEADLINE_EXCEEDED", "no answer in time")
        return router.SubmitMediaResponse(response=response)

    async def poll_media(self, request: router.PollMediaRequest, call: Call) -> router.PollMediaResponse:
        job = request.request.provider_job_id
        if job in self.cancelled:
            return router.PollMediaResponse(progress=provider.MediaProgress(state="cancelled"))
        self.jobs[job] -= 1
        if self.jobs[job] > 0:
            return router.PollMediaResponse(
                progress=provider.MediaProgress(state="running", fraction=1 / (1 + self.jobs[job]))
            )
        return router.PollMediaResponse(progress=_done())

    async def cancel_media(
        self, request: router.CancelMediaRequest, call: Call
    ) -> router.CancelMediaResponse:
        self.cancelled.append(request.request.provider_job_id)
        return router.CancelMediaResponse(outcome="requested")

    async def read_webhook(
        self, request: router.ReadWebhookRequest, call: Call
    ) -> router.ReadWebhookResponse:
        """Read `signed:<event id>:<provider job>:<state>`, and add outputs to what has succeeded."""
        signature, *parts = request.request.body.decode().split(":")
        if signature != "signed":
            raise RpcError("INVALID_CREDENTIAL", "the signature is wrong")
        event_id, provider_job_id, state = parts
        progress = _done() if state == "succeeded" else provider.MediaProgress(state=state.strip("!"))
        answer = provider.ReadWebhookResponse(
            event_id=event_id, provider_job_id=provider_job_id, progress=progress
        )
        return router.ReadWebhookResponse(response=answer)

    async def find_media(self, request: router.FindMediaRequest, call: Call) -> router.FindMediaResponse:
        return router.FindMediaResponse(provider_job_id=self.by_effect.get(request.request.effect_key, ""))


def _done() -> provider.MediaProgress:
    output = provider.ProviderOutput(data=PNG, facts=MediaOutput(mime="image/png"))
    return provider.MediaProgress(state="succeeded", outputs=[output], usage=MediaUsage(images=1))


class MemoryOutputs:
    """Keeps outputs in memory."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []

    async def keep(
        self, organisation_id: str, job_id: str, provider_name: str, output: provider.ProviderOutput
    ) -> MediaOutput:
        self.kept.append(output.data)
        return MediaOutput(file_id=f"file_{len(self.kept)}", mime=output.facts.mime)
