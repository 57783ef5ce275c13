"""What the router itself costs a request, in process: `python -m bench.router_path`.

RouterService is called as the facade calls it, over the local transport, and asks a provider that answers at
once, over the same. Prints processor time per request: of the whole, of a stand-in router that hands back
a ready answer (one hop), and the difference, which is what the router does itself. The journal keeps records
in memory here: what its writer costs is measured by `bench.billing`. `--profile` prints where calls go.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import logging
import pstats
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import structlog
import uvloop
from omnihub.common.v1.chat_pb2 import ChatInput, Finish, Usage
from omnihub.common.v1.stream_pb2 import RawFrame
from omnihub.provider.v1 import provider_service_pb2 as provider
from omnihub.provider.v1.provider_service_api import ProviderService
from omnihub.router.v1 import router_service_pb2 as pb
from omnihub.router.v1.router_service_api import RouterService

from services.common.ids import new_id
from services.common.rpc import Call, Connector, Identity, Registry
from services.router.accounting.store import Record
from services.router.settings import RouteSettings
from tests.support.fakes import Fake, FakeBilling, FakeProviders
from tests.support.router import OPENAI, Router

CHUNKS = 50
WORKERS = 32
"""Requests under way at the same time, as under load."""
REQUESTS = 3200
ROUNDS = 9
MODELS = 10
"""How many models the request that leaves the choice to the router can choose from."""
IDENTITY = Identity(
    organisation_id="org_0190f3c0a1b27d9e8f00112233445566",
    workspace_id="ws_0190f3c0a1b27d9e8f00112233445566",
    key_id="key_0190f3c0a1b27d9e8f00112233445566",
    scopes=frozenset({"chat", "usage"}),
)
BODY = (
    b'{"model":"%s","messages":[{"role":"system","content":"You answer briefly and to the point."},'
    b'{"role":"user","content":"Name three things that a gateway in front of language models has to do well, '
    b'and say in one sentence each why they matter to the people who run it."}],"max_tokens":256,'
    b'"temperature":0.2}'
)
TEXT = b"It must be fast, exact and honest. " * 10
ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1767225600,"model":"gpt-x-2026-01-01","choices":'
    b'[{"index":0,"message":{"role":"assistant","content":"' + TEXT + b'"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":58,"completion_tokens":82,"total_tokens":140}}'
)
FRAME = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"index":0,'
    b'"delta":{"content":"word "}}]}\n\n'
)

Ask = Callable[[Any], Awaitable[None]]


def usage() -> Usage:
    """Return what a provider reports."""
    return Usage(input_total=58, output_total=82)


class Provider(FakeProviders):
    """Answers at once, with messages made as an adapter makes them."""

    async def chat(self, request: Any, call: Call) -> provider.ChatResponse:
        """Answer whole."""
        return provider.ChatResponse(
            raw_body=ANSWER,
            finish=Finish(reason="stop", raw="stop"),
            usage=usage(),
            model="gpt-x-2026-01-01",
            response_id="chatcmpl-1",
            provider_request_id="req_vendor",
        )

    async def stream_chat(self, request: Any, call: Call) -> AsyncIterator[provider.StreamChatResponse]:
        """Answer in pieces."""
        begin = provider.StreamStart(model="gpt-x-2026-01-01", response_id="chatcmpl-1", wire_format=OPENAI)
        yield provider.StreamChatResponse(start=begin)
        for _ in range(CHUNKS):
            yield provider.StreamChatResponse(raw_frame=RawFrame(data=FRAME, text="word "))
        end = provider.StreamEnd(finish=Finish(reason="stop", raw="stop"), usage=usage(), raw_tail=[FRAME])
        yield provider.StreamChatResponse(end=end)


class StandIn(Fake):
    """A router that does nothing: what a call of it takes is the hop."""

    def __init__(self) -> None:
        self.answer = pb.ChatResponse()
        self.events: list[pb.StreamChatResponse] = []

    async def chat(self, request: Any, call: Call) -> pb.ChatResponse:
        """Hand back a ready answer."""
        return self.answer

    async def stream_chat(self, request: Any, call: Call) -> AsyncIterator[pb.StreamChatResponse]:
        """Hand back ready events."""
        for event in self.events:
            yield event


class QuickJournal:
    """Says of each record in the next turn of the loop that it is written."""

    def __init__(self) -> None:
        self.written = 0

    def append(self, record: Record) -> asyncio.Future[None]:
        """Count a record."""
        loop = asyncio.get_running_loop()
        written: asyncio.Future[None] = loop.create_future()
        self.written += 1
        loop.call_soon(written.set_result, None)
        return written


def build() -> Router:
    """Return a router with one model that callers name, and others to choose from."""
    names = [f"wall/model-{number}" for number in range(MODELS)]
    billing = FakeBilling(10**18, lease_ttl_s=3600)
    for number, name in enumerate(names):
        billing.price(name, 1_000_000 + number, 2_000_000 + number)
    routes = {
        f"model-{number}": RouteSettings(route=[name], strengths={"chat": number / MODELS})
        for number, name in enumerate(names)
    }
    routes["support-chat"] = RouteSettings(route=names[:3], retries=2)
    router = Router(routes, Provider("wall"), billing, baseline_model=names[-1])
    router.journal = router.admission._journal = QuickJournal()  # type: ignore[assignment]
    return router


def request_for(model: bytes, kind: type[Any]) -> Any:
    """Return the request that the facade makes of a caller's body."""
    chat = ChatInput(model=model.decode(), max_tokens=256)
    options = pb.CallOptions(choices=1)
    return kind(chat=chat, raw_body=BODY % model, wire_format=OPENAI, options=options)


def asks(router: Router, standin: Any) -> dict[str, tuple[Ask, Ask | None]]:
    """Return what is measured: the work, and the same through the stand-in."""

    def whole(client: Any, model: bytes) -> Ask:
        async def ask(call: Call) -> None:
            await client.chat(request_for(model, pb.ChatRequest), call)

        return ask

    def stream(client: Any, model: bytes) -> Ask:
        async def ask(call: Call) -> None:
            async for _ in client.stream_chat(request_for(model, pb.StreamChatRequest), call):
                pass

        return ask

    return {
        "chat": (whole(router.client, b"support-chat"), whole(standin, b"support-chat")),
        "chat, auto": (whole(router.client, b"auto"), whole(standin, b"auto")),
        f"stream of {CHUNKS}": (stream(router.client, b"support-chat"), stream(standin, b"support-chat")),
    }


async def microseconds(ask: Ask, requests: int) -> float:
    """Return the processor time of one request, many being under way."""

    async def work(count: int) -> None:
        for _ in range(count):
            await ask(Call(new_id("req"), IDENTITY).within(600))

    gc.collect()
    started = time.thread_time()
    await asyncio.gather(*(work(requests // WORKERS) for _ in range(WORKERS)))
    return (time.thread_time() - started) / requests * 1e6


async def connected() -> tuple[Router, Any]:
    """Return the router and its stand-in, which answers as the router did."""
    router, idle = build(), StandIn()
    registry = Registry()
    registry.add(RouterService, idle)
    registry.add(ProviderService, router.providers)
    standin: Any = Connector(registry, {}).connect(RouterService, "router")
    call = Call(new_id("req"), IDENTITY).within(600)
    idle.answer = await router.client.chat(request_for(b"support-chat", pb.ChatRequest), call)
    stream = router.client.stream_chat(request_for(b"support-chat", pb.StreamChatRequest), call)
    idle.events = [event async for event in stream]
    return router, standin


async def table(only: str, rounds: int) -> None:
    """Print what each kind of request costs."""
    router, standin = await connected()
    kinds = {name: both for name, both in asks(router, standin).items() if only in name}
    for both in kinds.values():
        for ask in both:
            if ask is not None:
                await microseconds(ask, WORKERS)
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, (ask, idle) in kinds.items():
            requests = REQUESTS // (8 if "stream" in name else 1)
            hop = 0.0 if idle is None else await microseconds(idle, requests)
            samples[name].append((await microseconds(ask, requests), hop))
    print(f"{'us of CPU per request':24}{'whole':>14}{'one hop':>14}{'router itself':>14}{'(least)':>10}")
    for name, pairs in samples.items():
        least = min(whole for whole, _ in pairs) - 2 * min(hop for _, hop in pairs)
        whole, hop = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{name:24}{whole:14.1f}{hop:14.1f}{whole - 2 * hop:14.1f}{least:10.1f}")
    assert router.admission._journal.written > 0  # type: ignore[attr-defined]


async def profile(only: str) -> None:
    """Print where the calls of a request go. The times are inflated by watching; the counts are true."""
    router, standin = await connected()
    ask = next(both[0] for name, both in asks(router, standin).items() if only in name)
    await microseconds(ask, WORKERS)
    watch = cProfile.Profile()
    watch.enable()
    await microseconds(ask, REQUESTS)
    watch.disable()
    pstats.Stats(watch).sort_stats("tottime").print_stats(70)


def main() -> None:
    """Measure or profile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="kinds of request whose name has this in it")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--profile", action="store_true")
    chosen = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    work = profile(chosen.only) if chosen.profile else table(chosen.only, chosen.rounds)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


if __name__ == "__main__":
    main()
