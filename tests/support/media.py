"""The providers service with makers of media, in this process, behind the interface its callers use."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omnihub.common.v1.media_pb2 import ImageInput, MediaInput
from omnihub.provider.v1 import media_provider_service_pb2 as pb
from omnihub.provider.v1.media_provider_service_api import MediaProviderService
from omnihub.router.v1 import media_router_service_pb2 as router

from services.common.rpc import Call, Connector, Registry
from services.common.service import Infrastructure
from services.providers.app import build
from services.providers.settings import ProviderSettings

LIMIT_S = 30.0


@asynccontextmanager
async def running_media(**providers: dict[str, Any]) -> AsyncIterator[MediaProviderService]:
    """Run the service with these providers and return a client of it."""
    registry = Registry()
    connector = Connector(registry, {})
    settings = {name: ProviderSettings.model_validate(given) for name, given in providers.items()}
    with TemporaryDirectory() as folder:
        service = build(settings, Infrastructure(connector=connector, data_dir=Path(folder)))
        for interface, implementation in service.interfaces:
            registry.add(interface, implementation)
        await service.start()
        try:
            yield connector.connect(MediaProviderService, "providers")
        finally:
            await service.stop()


class Maker:
    """One provider, one model."""

    def __init__(self, client: MediaProviderService, provider: str, model: str) -> None:
        self.client = client
        self.provider = provider
        self.model = model

    async def submit(self, given: MediaInput | None = None, **fields: Any) -> pb.SubmitMediaResponse:
        """Begin a generation; a picture unless told otherwise."""
        given = given or MediaInput(image=ImageInput(prompt="a boat"))
        fields = {"provider": self.provider, "model": self.model, "effect_key": "eff_1", **fields}
        attempt = pb.MediaAttempt(input=given, **fields)
        return await self.client.submit_media(pb.SubmitMediaRequest(attempt=attempt), self._call)

    @property
    def _call(self) -> Call:
        return Call.internal(LIMIT_S)

    async def poll(self, job: str) -> pb.MediaProgress:
        """Ask how far it is."""
        request = pb.PollMediaRequest(
            provider=self.provider, model=self.model, provider_job_id=job, kind="image"
        )
        return (await self.client.poll_media(request, self._call)).progress

    async def poll_to_end(self, job: str, most: int = 20) -> list[pb.MediaProgress]:
        """Ask until it has ended; return every answer."""
        seen = []
        while not seen or seen[-1].state in ("queued", "running"):
            assert len(seen) < most
            seen.append(await self.poll(job))
        return seen

    async def cancel(self, job: str) -> str:
        """Ask to stop it."""
        request = pb.CancelMediaRequest(provider=self.provider, model=self.model, provider_job_id=job)
        return (await self.client.cancel_media(request, self._call)).outcome

    async def find(self, effect_key: str = "eff_1", **fields: Any) -> str:
        """Look for what an attempt has begun."""
        attempt = pb.MediaAttempt(
            provider=self.provider,
            model=self.model,
            input=MediaInput(image=ImageInput(prompt="a boat")),
            effect_key=effect_key,
        )
        request = pb.FindMediaRequest(
            provider=self.provider, model=self.model, effect_key=effect_key, attempt=attempt, **fields
        )
        return (await self.client.find_media(request, self._call)).provider_job_id

    async def read(self, headers: dict[str, str], body: bytes) -> pb.ReadWebhookResponse:
        """Read a notification."""
        request = pb.ReadWebhookRequest(provider=self.provider, headers=headers, body=body)
        return await self.client.read_webhook(request, self._call)

    async def fetch(self, reference: str) -> bytes:
        """Fetch an output."""
        request = pb.FetchOutputRequest(provider=self.provider, fetch_reference=reference)
        stream: Any = self.client.fetch_output(request, self._call)
        return b"".join([message.data async for message in stream])

    def serve(self, target: Any, **abilities: bool) -> None:
        """Let a media router of the tests relay to this provider."""
        limit = self._call

        async def plan_media(request: Any, call: Any) -> router.PlanMediaResponse:
            planned = router.MediaTarget(
                provider=self.provider,
                model=self.model,
                estimate_nano_credits=10_000_000,
                **abilities,
            )
            return router.PlanMediaResponse(targets=[planned])

        async def submit_media(request: Any, call: Any) -> router.SubmitMediaResponse:
            answer = await self.client.submit_media(pb.SubmitMediaRequest(attempt=request.attempt), limit)
            return router.SubmitMediaResponse(response=answer)

        async def poll_media(request: Any, call: Any) -> router.PollMediaResponse:
            answer = await self.client.poll_media(request.request, limit)
            return router.PollMediaResponse(progress=answer.progress)

        async def cancel_media(request: Any, call: Any) -> router.CancelMediaResponse:
            answer = await self.client.cancel_media(request.request, limit)
            return router.CancelMediaResponse(outcome=answer.outcome)

        async def find_media(request: Any, call: Any) -> router.FindMediaResponse:
            answer = await self.client.find_media(request.request, limit)
            return router.FindMediaResponse(provider_job_id=answer.provider_job_id)

        for relay in (plan_media, submit_media, poll_media, cancel_media, find_media):
            setattr(target, relay.__name__, relay)
