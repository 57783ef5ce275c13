"""Speech as it is made, through the router: reserved, failed over, paid once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.billing.v1.price_pb2 import Margin, Price
from omnihub.common.v1.media_pb2 import MediaUsage, SpeechInput
from omnihub.provider.v1 import media_provider_service_pb2 as provider
from omnihub.provider.v1.media_provider_service_api import MediaProviderService
from omnihub.router.v1 import media_router_service_pb2 as pb
from omnihub.router.v1.media_router_service_api import MediaRouterService

from services.common.rpc import Call, Connector, Registry, RpcError
from services.credits.media_rating import covers_media
from services.router.accounting.leases import Leases
from services.router.accounting.prices import Prices
from services.router.domain.catalogue import Catalogue, Provider
from services.router.health.health import Health
from services.router.media.server import MediaRouterServer
from services.router.media.speech import Speech
from services.router.settings import BreakerSettings, RouteSettings
from tests.support.fakes import Fake, FakeBilling
from tests.support.router import MemoryJournal, a_call

TEXT = "hello there"
# Nano-credits of one character.
EACH = 1000
Script = Callable[[], AsyncIterator[provider.StreamSpeechResponse]]


def start() -> provider.StreamSpeechResponse:
    return provider.StreamSpeechResponse(start=provider.SpeechStart(mime="audio/mpeg"))


def sound(data: bytes) -> provider.StreamSpeechResponse:
    return provider.StreamSpeechResponse(audio=data)


def end(**usage: Any) -> provider.StreamSpeechResponse:
    usage = usage or {"characters": len(TEXT)}
    return provider.StreamSpeechResponse(end=provider.SpeechEnd(usage=MediaUsage(**usage)))


def says(*messages: provider.StreamSpeechResponse, then: RpcError | None = None) -> Script:
    async def script() -> AsyncIterator[provider.StreamSpeechResponse]:
        for message in messages:
            yield message
        if then is not None:
            raise then

    return script


class Speakers(Fake):
    """Providers that speak by a script."""

    def __init__(self, **scripts: Script) -> None:
        self.scripts = scripts
        self.asked: list[str] = []
        self.speaks = True

    async def get_media_capabilities(self, request: Any, call: Call) -> Any:
        return provider.GetMediaCapabilitiesResponse(
            providers=[
                provider.MediaCapabilities(provider=name, kinds=["speech"], streams_speech=self.speaks)
                for name in self.scripts
            ]
        )

    def stream_speech(self, request: Any, call: Call) -> AsyncIterator[provider.StreamSpeechResponse]:
        self.asked.append(request.attempt.provider)
        return self.scripts[request.attempt.provider]()


class Stage:
    """A router that speaks, and what a test looks at."""

    def __init__(self, available: int = 10**12, **scripts: Script) -> None:
        self.speakers = Speakers(**scripts)
        self.billing = FakeBilling(available)
        registry = Registry()
        registry.add(BillingService, self.billing)
        registry.add(MediaProviderService, self.speakers)
        connector = Connector(registry, {})
        route = [f"{name}/v" for name in scripts]
        for name in route:
            self.billing.prices[name] = Price(version="p1", character_pico=EACH * 1000, source="configured")
        self.journal: Any = MemoryJournal()
        billing = connector.connect(BillingService, "billing")

        async def nothing(lease_id: str) -> None:
            return

        self.leases = Leases(billing, "test", 1000, 10**9, nothing)
        catalogue = Catalogue.build(
            {"voice": RouteSettings(route=route)},
            [Provider(name, "x", frozenset(), False) for name in scripts],
        )
        makers = connector.connect(MediaProviderService, "providers")
        health = Health(BreakerSettings(), time.monotonic)
        self.speech = Speech(makers, self.leases, self.journal, health)
        prices = Prices(billing, {}, covers=covers_media)
        server = MediaRouterServer(makers, prices, lambda: catalogue, health, self.speech)
        registry.add(MediaRouterService, server)
        self.client: Any = connector.connect(MediaRouterService, "router")

    def stream(self) -> Any:
        request = pb.StreamSpeechRequest(model="voice", speech=SpeechInput(text=TEXT))
        return self.client.stream_speech(request, a_call())

    async def all(self) -> list[pb.StreamSpeechResponse]:
        return [message async for message in self.stream()]

    async def settle(self) -> None:
        await self.speech.drain()
        while self.leases._background:
            await asyncio.wait(self.leases._background)

    @property
    def reserved(self) -> int:
        return sum(lease.reserved for lease in self.leases._open.values())

    @property
    def spent(self) -> int:
        return sum(lease.spent for lease in self.leases._open.values())


async def test_it_is_reserved_before_and_paid_once() -> None:
    gate = asyncio.Event()

    async def slow() -> AsyncIterator[provider.StreamSpeechResponse]:
        yield start()
        await gate.wait()
        yield sound(b"so")
        yield sound(b"und")
        yield end()

    stage = Stage(a=slow)
    stream = stage.stream()
    assert (await anext(stream)).start.mime == "audio/mpeg"
    assert stage.reserved >= len(TEXT) * EACH
    gate.set()
    *audio, last = [message async for message in stream]
    assert b"".join(message.audio for message in audio) == b"sound"
    assert (last.end.cost, last.end.model_used) == ("0.000011", "a/v")
    (charge,) = stage.journal.charges
    assert (charge.amount_nano_credits, charge.modality, charge.state) == (11_000, "speech", "complete")
    assert (charge.organisation_id, charge.cost_source, charge.price_version) == ("org_1", "price", "p1")
    await stage.settle()
    assert (stage.reserved, stage.spent) == (0, 11_000)


async def test_a_margin_is_reserved_and_paid() -> None:
    stage = Stage(a=says(start(), sound(b"x"), end()))
    stage.billing.margins = [Margin(version="m1", model="a/*", basis_points=10_000)]
    last = (await stage.all())[-1]
    (charge,) = stage.journal.charges
    assert (charge.amount_nano_credits, charge.cost_nano_credits) == (22_000, 11_000)
    assert (last.end.cost, charge.margin_version) == ("0.000022", "m1")
    assert stage.journal.decisions[0].estimate == "0.000022"


async def test_the_record_is_durable_before_the_last_message() -> None:
    stage = Stage(a=says(start(), sound(b"x"), end()))
    stage.journal.failing = True
    with pytest.raises(RpcError) as caught:
        await stage.all()
    assert caught.value.reason == "UNAVAILABLE"


async def test_the_next_one_speaks_when_the_first_cannot() -> None:
    broken = RpcError("PROVIDER_CONCURRENCY", "busy")
    stage = Stage(a=says(then=broken), b=says(start(), sound(b"x"), end()))
    assert (await stage.all())[-1].end.model_used == "b/v"
    assert stage.speakers.asked == ["a", "b"]
    (decision,) = stage.journal.decisions
    assert [attempt.state for attempt in decision.attempts] == ["failed", "complete"]
    assert len(stage.journal.charges) == 1


async def test_a_voice_that_one_provider_has_is_spoken_there() -> None:
    stage = Stage(a=says(start(), sound(b"x"), end()), b=says(start(), sound(b"x"), end()))
    request = pb.StreamSpeechRequest(model="voice", speech=SpeechInput(text=TEXT), provider="b")
    *_, last = [message async for message in stage.client.stream_speech(request, a_call())]
    assert last.end.model_used == "b/v"
    request.provider = "c"
    with pytest.raises(RpcError, match="name a model of c") as caught:
        [message async for message in stage.client.stream_speech(request, a_call())]
    assert (caught.value.reason, stage.speakers.asked) == ("NO_CANDIDATE", ["b"])


async def test_a_wrong_request_is_not_asked_again() -> None:
    stage = Stage(a=says(then=RpcError("PROVIDER_REJECTED", "no such voice")), b=says(start(), end()))
    with pytest.raises(RpcError) as caught:
        await stage.all()
    assert (caught.value.reason, stage.speakers.asked) == ("PROVIDER_REJECTED", ["a"])
    await stage.settle()
    assert (stage.journal.charges, stage.reserved, stage.spent) == ([], 0, 0)


@pytest.mark.parametrize(
    "script",
    [
        says(start(), sound(b"x"), then=RpcError("STREAM_TRUNCATED", "cut")),
        says(start(), sound(b"x")),
    ],
    ids=["said", "silent"],
)
async def test_cut_sound_is_an_error_and_costs_nothing(script: Script) -> None:
    stage = Stage(a=script, b=says(start(), end()))
    with pytest.raises(RpcError) as caught:
        await stage.all()
    assert (caught.value.reason, stage.speakers.asked) == ("STREAM_TRUNCATED", ["a"])
    await stage.settle()
    assert (stage.journal.charges, stage.reserved, stage.spent) == ([], 0, 0)
    assert stage.journal.decisions[0].reason == "STREAM_TRUNCATED"


async def test_who_leaves_pays_and_closes_the_provider() -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[provider.StreamSpeechResponse]:
        try:
            yield start()
            while True:
                yield sound(b"x")
                await asyncio.sleep(0)
        finally:
            closed.set()

    stage = Stage(a=endless)
    stream = stage.stream()
    await anext(stream)
    await anext(stream)
    await stream.aclose()
    async with asyncio.timeout(60):
        await closed.wait()
        await stage.journal.appending.wait()
        await stage.settle()
    (charge,) = stage.journal.charges
    assert (charge.amount_nano_credits, charge.state, charge.cost_source) == (11_000, "cancelled", "estimate")
    assert stage.reserved == 0


async def test_usage_without_what_is_priced_pays_the_estimate() -> None:
    stage = Stage(a=says(start(), sound(b"x"), end(seconds=2)))
    assert (await stage.all())[-1].end.cost == "0.000011"
    assert stage.journal.charges[0].cost_source == "estimate"


async def test_without_credits_nobody_is_asked() -> None:
    stage = Stage(available=0, a=says(start(), end()))
    with pytest.raises(RpcError) as caught:
        await stage.all()
    assert (caught.value.reason, stage.speakers.asked) == ("INSUFFICIENT_CREDITS", [])


async def test_nobody_speaks_while_it_makes() -> None:
    stage = Stage(a=says(start(), end()))
    stage.speakers.speaks = False
    with pytest.raises(RpcError, match="make it as a job") as caught:
        await stage.all()
    assert caught.value.reason == "NO_CANDIDATE"
