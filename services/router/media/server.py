"""Serves omnihub.router.v1.MediaRouterService: plans, relays to the providers, watches their health."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from omnihub.billing.v1.price_pb2 import Margin, Price
from omnihub.common.v1.media_pb2 import MediaInput
from omnihub.provider.v1 import media_provider_service_pb2 as provider
from omnihub.provider.v1.media_provider_service_api import MediaProviderService
from omnihub.router.v1 import media_router_service_pb2 as pb

from services.common.rpc import Call, RpcError
from services.router.accounting.prices import Prices
from services.router.domain.catalogue import Catalogue, Model, Target
from services.router.domain.limits import OrganisationRules
from services.router.health.health import Health
from services.router.media.planning import candidates, only_at, plan
from services.router.media.speech import Speech

LIMIT_S = 10.0
# Of what this machine makes by rules, unless somebody sets a price.
FREE = Price(source="free")

Answer = TypeVar("Answer")


class MediaRouterServer:
    """See the contract in omnihub/router/v1/media_router_service.proto."""

    def __init__(
        self,
        providers: MediaProviderService,
        prices: Prices,
        catalogue: Callable[[], Catalogue],
        health: Health,
        speech: Speech,
        rules_of: Callable[[str], OrganisationRules | None] = lambda _: None,
    ) -> None:
        self._providers = providers
        self._prices = prices
        self._catalogue = catalogue
        self._health = health
        self._speech = speech
        self._rules_of = rules_of

    async def plan_media(self, request: pb.PlanMediaRequest, call: Call) -> pb.PlanMediaResponse:
        makers = await self._makers()
        rules = self._rules_of(request.organisation_id)
        given = candidates(request, self._catalogue(), makers, rules)
        prices = await self._prices.of((each.target, each.model.priced_as) for each in given)

        def price_of(target: Target, model: Model) -> Price | None:
            return prices[target, model.priced_as] or (FREE if makers[target.provider].synthetic else None)

        def margin_of(target: Target) -> Margin | None:
            return prices.margins.of(request.organisation_id, target.name)

        return plan(request, given, makers, price_of, margin_of)

    async def _makers(self) -> dict[str, provider.MediaCapabilities]:
        request = provider.GetMediaCapabilitiesRequest()
        answer = await self._providers.get_media_capabilities(request, Call.internal(LIMIT_S))
        return {each.provider: each for each in answer.providers}

    async def submit_media(self, request: pb.SubmitMediaRequest, call: Call) -> pb.SubmitMediaResponse:
        attempt = request.attempt
        target = Target(attempt.provider, attempt.model)
        if objection := self._health.objection(target):
            raise RpcError(
                "UNAVAILABLE",
                f"{target.name}: {objection}",
                metadata={"circuit": "open"},
                retry_after_s=self._health.pause_s(target) or 1.0,
            )
        message = provider.SubmitMediaRequest(attempt=attempt)
        return pb.SubmitMediaResponse(
            response=await self._watched(target, self._providers.submit_media(message, call))
        )

    async def _watched(self, target: Target, asking: Awaitable[Answer]) -> Answer:
        """Ask, and take in what the outcome says about the provider."""
        began = time.monotonic()
        try:
            answer = await asking
        except RpcError as error:
            self._health.failed(target, error, began)
            raise
        except BaseException:
            self._health.released(target)
            raise
        self._health.succeeded(target, began)
        return answer

    async def poll_media(self, request: pb.PollMediaRequest, call: Call) -> pb.PollMediaResponse:
        answer = await self._providers.poll_media(request.request, call)
        return pb.PollMediaResponse(progress=answer.progress)

    async def cancel_media(self, request: pb.CancelMediaRequest, call: Call) -> pb.CancelMediaResponse:
        answer = await self._providers.cancel_media(request.request, call)
        return pb.CancelMediaResponse(outcome=answer.outcome)

    async def find_media(self, request: pb.FindMediaRequest, call: Call) -> pb.FindMediaResponse:
        answer = await self._providers.find_media(request.request, call)
        return pb.FindMediaResponse(provider_job_id=answer.provider_job_id)

    async def read_webhook(self, request: pb.ReadWebhookRequest, call: Call) -> pb.ReadWebhookResponse:
        return pb.ReadWebhookResponse(response=await self._providers.read_webhook(request.request, call))

    async def fetch_output(
        self, request: pb.FetchOutputRequest, call: Call
    ) -> AsyncIterator[pb.FetchOutputResponse]:
        stream: Any = self._providers.fetch_output(request.request, call)
        async with aclosing(stream):
            async for message in stream:
                yield pb.FetchOutputResponse(data=message.data)

    async def stream_speech(
        self, request: pb.StreamSpeechRequest, call: Call
    ) -> AsyncIterator[pb.StreamSpeechResponse]:
        given = MediaInput(speech=request.speech, extension_json=request.extension_json)
        wanted = pb.PlanMediaRequest(
            model=request.model,
            input=given,
            allowed_models=call.identity.allowed_models,
            organisation_id=call.identity.organisation_id,
        )
        planned = await self.plan_media(wanted, call)
        if request.provider:
            planned = only_at(request.provider, planned)
        async with aclosing(self._speech.stream(given, planned, call)) as messages:
            async for message in messages:
                yield message

    async def list_voices(self, request: pb.ListVoicesRequest, call: Call) -> pb.ListVoicesResponse:
        makers = [request.provider] if request.provider else list(await self._makers())
        response = pb.ListVoicesResponse()
        for name in makers:
            try:
                asked = provider.ListVoicesRequest(provider=name)
                answer = await self._providers.list_voices(asked, call)
            except RpcError as error:
                if request.provider or error.reason != "NOT_IMPLEMENTED":
                    raise
                continue
            response.voices.extend(pb.ProviderVoice(provider=name, voice=voice) for voice in answer.voices)
        return response

    async def delete_voice(self, request: pb.DeleteVoiceRequest, call: Call) -> pb.DeleteVoiceResponse:
        asked = provider.DeleteVoiceRequest(provider=request.provider, voice=request.voice)
        await self._providers.delete_voice(asked, call)
        return pb.DeleteVoiceResponse()
