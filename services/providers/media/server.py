"""Serves omnihub.provider.v1.MediaProviderService: finds the adapter, translates messages, nothing else."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import TypeVar

from omnihub.provider.v1 import media_provider_service_pb2 as pb

from services.common.rpc import Call, RpcError
from services.providers.domain.failure import UnsupportedError
from services.providers.media.adapter import (
    Cancels,
    Fetches,
    Finds,
    HasVoices,
    MediaAdapter,
    Notifies,
    Polled,
    Speaks,
)

Able = TypeVar("Able")


class MediaProviderServer:
    """See the contract in omnihub/provider/v1/media_provider_service.proto."""

    def __init__(self, adapters: Mapping[str, MediaAdapter]) -> None:
        self._adapters = adapters

    def _adapter(self, provider: str) -> MediaAdapter:
        adapter = self._adapters.get(provider)
        if adapter is None:
            raise RpcError("NOT_FOUND", f"no provider {provider!r} that makes media is configured")
        return adapter

    def _able(self, provider: str, ability: type[Able], what: str) -> Able:
        adapter = self._adapter(provider)
        if not isinstance(adapter, ability):
            raise RpcError("NOT_IMPLEMENTED", f"the provider {provider} cannot {what}")
        return adapter

    async def get_media_capabilities(
        self, request: pb.GetMediaCapabilitiesRequest, call: Call
    ) -> pb.GetMediaCapabilitiesResponse:
        return pb.GetMediaCapabilitiesResponse(
            providers=[_capabilities(name, adapter) for name, adapter in self._adapters.items()]
        )

    async def submit_media(self, request: pb.SubmitMediaRequest, call: Call) -> pb.SubmitMediaResponse:
        attempt = request.attempt
        adapter = self._adapter(attempt.provider)
        kind = attempt.input.WhichOneof("kind") or ""
        if kind not in adapter.abilities.kinds:
            made = ", ".join(sorted(adapter.abilities.kinds))
            raise UnsupportedError(attempt.provider, f"{attempt.provider} makes {made}, not {kind}", "input")
        answer = await adapter.submit(attempt)
        for output in answer.progress.outputs:
            output.facts.synthetic = adapter.abilities.synthetic
        return answer

    async def poll_media(self, request: pb.PollMediaRequest, call: Call) -> pb.PollMediaResponse:
        adapter = self._able(request.provider, Polled, "be polled: it makes everything within the call")
        return pb.PollMediaResponse(progress=await adapter.poll(request))

    async def cancel_media(self, request: pb.CancelMediaRequest, call: Call) -> pb.CancelMediaResponse:
        adapter = self._able(request.provider, Cancels, "stop what it has begun")
        return pb.CancelMediaResponse(outcome=await adapter.cancel(request))

    async def find_media(self, request: pb.FindMediaRequest, call: Call) -> pb.FindMediaResponse:
        adapter = self._able(request.provider, Finds, "list what it runs")
        return pb.FindMediaResponse(provider_job_id=await adapter.find(request))

    async def read_webhook(self, request: pb.ReadWebhookRequest, call: Call) -> pb.ReadWebhookResponse:
        adapter = self._able(request.provider, Notifies, "send notifications")
        return await adapter.read_webhook(request.headers, request.body)

    async def fetch_output(
        self, request: pb.FetchOutputRequest, call: Call
    ) -> AsyncGenerator[pb.FetchOutputResponse, None]:
        adapter = self._able(request.provider, Fetches, "hand out outputs this way")
        async for data in adapter.fetch(request.fetch_reference):
            yield pb.FetchOutputResponse(data=data)

    def stream_speech(
        self, request: pb.StreamSpeechRequest, call: Call
    ) -> AsyncGenerator[pb.StreamSpeechResponse, None]:
        adapter = self._able(request.attempt.provider, Speaks, "speak while it makes")
        return adapter.stream_speech(request.attempt)

    async def list_voices(self, request: pb.ListVoicesRequest, call: Call) -> pb.ListVoicesResponse:
        adapter = self._able(request.provider, HasVoices, "list voices")
        return pb.ListVoicesResponse(voices=await adapter.voices())

    async def delete_voice(self, request: pb.DeleteVoiceRequest, call: Call) -> pb.DeleteVoiceResponse:
        adapter = self._able(request.provider, HasVoices, "delete voices")
        await adapter.delete_voice(request.voice)
        return pb.DeleteVoiceResponse()


def _capabilities(name: str, adapter: MediaAdapter) -> pb.MediaCapabilities:
    abilities = adapter.abilities
    return pb.MediaCapabilities(
        provider=name,
        adapter=adapter.adapter,
        kinds=sorted(abilities.kinds),
        immediate=sorted(abilities.immediate),
        cancels=abilities.cancels,
        webhooks=abilities.webhooks,
        idempotent=abilities.idempotent,
        finds=abilities.finds,
        streams_speech=abilities.streams_speech,
        concurrency=abilities.concurrency,
        synthetic=abilities.synthetic,
        models=[
            pb.KindModels(kind=kind, patterns=patterns) for kind, patterns in sorted(abilities.models.items())
        ],
    )
