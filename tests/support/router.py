"""A router over fake peers, with a journal of the test's choice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.billing.v1.usage_pb2 import Charge
from omnihub.common.v1.chat_pb2 import ChatInput, Finish, Message, Part, TextPart, Usage, WireFormat
from omnihub.common.v1.stream_pb2 import PartDelta, RawFrame
from omnihub.provider.v1 import provider_service_pb2 as provider
from omnihub.provider.v1.provider_service_api import ProviderService
from omnihub.router.v1 import router_service_pb2 as pb
from omnihub.router.v1.decision_pb2 import Decision
from omnihub.router.v1.router_service_api import RouterService

from services.common.ids import new_id
from services.common.rpc import Call, Connector, Identity, Registry, RpcError
from services.router.accounting.journal import JournalError
from services.router.accounting.leases import Leases
from services.router.accounting.prices import Prices
from services.router.accounting.store import Record
from services.router.admission import Admission
from services.router.cache.caching import AnswerCache
from services.router.domain.catalogue import Catalogue, Provider
from services.router.execution.counting import Counting
from services.router.execution.execution import Execution
from services.router.health.health import Health
from services.router.health.latency import Latencies
from services.router.planning.detection import Detector
from services.router.planning.planner import Planner
from services.router.server import RouterServer
from services.router.settings import RouterSettings, RouteSettings
from tests.support.fakes import FakeBilling, FakeProviders

ORGANISATION = "org_1"
IDENTITY = Identity(organisation_id=ORGANISATION, key_id="key_1", scopes=frozenset({"chat"}))
OPENAI = WireFormat.WIRE_FORMAT_OPENAI_CHAT
# Nano-credits of one input and one output token at the price `build` sets.
INPUT_NANO, OUTPUT_NANO = 1000, 2000


class MemoryJournal:
    """Keeps records in memory. `gate` holds them back, `failing` refuses them."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.appending = asyncio.Event()
        self.gate: asyncio.Event | None = None
        self.failing = False

    def append(self, record: Record) -> asyncio.Future[None]:
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.appending.set()
        if self.gate is None:
            asyncio.get_running_loop().call_soon(self._write, record, written)
        else:
            self._task = asyncio.ensure_future(self.gate.wait())
            self._task.add_done_callback(lambda _: self._write(record, written))
        return written

    def _write(self, record: Record, written: asyncio.Future[None]) -> None:
        if self.failing:
            written.set_exception(JournalError())
        else:
            self.records.append(record)
            written.set_result(None)

    @property
    def decisions(self) -> list[Decision]:
        """The decisions of all records."""
        return [Decision.FromString(record.decision) for record in self.records]

    @property
    def charges(self) -> list[Charge]:
        """The charges of all records that have one."""
        return [Charge.FromString(record.charge) for record in self.records if record.charge]


class Router:
    """A router and what a test looks at."""

    def __init__(
        self,
        routes: Mapping[str, RouteSettings],
        providers: FakeProviders,
        billing: FakeBilling,
        **settings: Any,
    ) -> None:
        registry = Registry()
        registry.add(BillingService, billing)
        registry.add(ProviderService, providers)
        connector = Connector(registry, {})
        self.settings = RouterSettings(**settings)
        self.billing = billing
        self.providers = providers
        self.journal: Any = MemoryJournal()
        self.leases = Leases(
            connector.connect(BillingService, "billing"), "test", 1000, 10**9, self._settle_lease
        )
        prices = Prices(
            connector.connect(BillingService, "billing"),
            {},
            flag_unknown=self.settings.unknown_price == "flag",
        )
        peer = connector.connect(ProviderService, "providers")
        self.now = 0.0
        health = self.health = Health(self.settings.breaker, lambda: self.now or time.monotonic())
        latencies = Latencies()
        detector = Detector(peer, self.settings.task_model, self.settings.task_model_limit_s)
        self.planner = Planner(self.settings, prices, latencies, detector, health.pause)
        cache = AnswerCache(self.settings.cache, None)
        self.admission = Admission(
            self.settings, prices, self.leases, self.journal, latencies, self.planner, cache
        )
        self.admission.catalogue = Catalogue.build(
            routes,
            [
                Provider(each.provider, each.adapter, frozenset(each.features), each.synthetic)
                for each in providers.capabilities
            ],
        )
        self.admission.measurements = health.measurements
        execution = Execution(peer, self.admission, health, self.settings.retry_after_limit_s)
        counting = Counting(self.admission, peer)
        store: Any = None
        registry.add(RouterService, RouterServer(self.admission, execution, store, counting))
        self.client: Any = connector.connect(RouterService, "router")
        self.settled: list[str] = []

    async def _settle_lease(self, lease_id: str) -> None:
        self.settled.append(lease_id)

    async def chat(self, **fields: Any) -> pb.ChatResponse:
        """Ask once, as an organisation with credits."""
        answer: pb.ChatResponse = await self.client.chat(chat_request(**fields), a_call())
        return answer

    async def stream(self, **fields: Any) -> tuple[list[pb.StreamChatResponse], RpcError | None]:
        """Return all messages of a stream, and how it failed."""
        messages = []
        try:
            async for message in self.client.stream_chat(stream_request(**fields), a_call()):
                messages.append(message)
        except RpcError as error:
            return messages, error
        return messages, None

    async def settle(self) -> None:
        """Wait until all that goes on behind an answer is done."""
        await self.admission.drain()
        while self.leases._background:
            await asyncio.wait(self.leases._background)

    @property
    def reserved(self) -> int:
        """Nano-credits reserved for requests under way."""
        return sum(lease.reserved for lease in self.leases._open.values())

    @property
    def spent(self) -> int:
        """Nano-credits spent from leases."""
        return sum(lease.spent for lease in self.leases._open.values())


def build(
    *targets: str,
    retries: int = 0,
    available: int = 10**12,
    features: Sequence[str] = ("chat", "stream", "embed"),
    hold_back: int = 0,
    **settings: Any,
) -> Router:
    """Return a router whose model `m` is routed to `targets`, each with the same price."""
    names = targets or ("a/x",)
    billing = FakeBilling(available)
    for name in names:
        billing.price(name, INPUT_NANO * 1000, OUTPUT_NANO * 1000)
    providers = FakeProviders(*dict.fromkeys(name.partition("/")[0] for name in names), features=features)
    route = RouteSettings(route=list(names), retries=retries, hold_back=hold_back)
    return Router({"m": route}, providers, billing, **settings)


def a_call(identity: Identity = IDENTITY, timeout_s: float | None = None) -> Call:
    """Return a call of a caller with an organisation."""
    return Call(new_id("req"), identity).within(timeout_s)


def a_chat(model: str = "m", text: str = "hello", **fields: Any) -> ChatInput:
    """Return a conversation of one message."""
    return ChatInput(model=model, messages=[Message(role="user", content=text)], **fields)


def chat_request(raw_body: bytes = b"", **fields: Any) -> pb.ChatRequest:
    """Return a typed request, or a raw one."""
    if raw_body:
        chat = ChatInput(model=fields.get("model", "m"))
        return pb.ChatRequest(chat=chat, raw_body=raw_body, wire_format=OPENAI)
    return pb.ChatRequest(chat=a_chat(**fields))


def stream_request(raw_body: bytes = b"", **fields: Any) -> pb.StreamChatRequest:
    """Return the same for a stream."""
    return pb.StreamChatRequest.FromString(chat_request(raw_body, **fields).SerializeToString())


def a_usage(input_total: int = 10, output_total: int = 5, **more: Any) -> Usage:
    """Return reported usage; at the prices of `build` 10 and 5 tokens cost 20,000 nano-credits."""
    return Usage(input_total=input_total, output_total=output_total, **more)


def an_answer(text: str = "hi", usage: Usage | None = None, **more: Any) -> provider.ChatResponse:
    """Return a typed answer."""
    return provider.ChatResponse(
        message=Message(role="assistant", parts=[Part(text=TextPart(text=text))]),
        finish=Finish(reason="stop", raw="stop"),
        usage=a_usage() if usage is None else usage,
        model="x-1",
        response_id="resp_1",
        **more,
    )


def start(raw: bool = False) -> provider.StreamChatResponse:
    """Return the first message of a provider's stream."""
    begin = provider.StreamStart(model="x-1", response_id="resp_1")
    if raw:
        begin.wire_format = OPENAI
    return provider.StreamChatResponse(start=begin)


def delta(text: str) -> provider.StreamChatResponse:
    """Return a piece of text."""
    return provider.StreamChatResponse(part_delta=PartDelta(text=text))


def frame(data: bytes, text: str = "") -> provider.StreamChatResponse:
    """Return a piece of the caller's own format."""
    return provider.StreamChatResponse(raw_frame=RawFrame(data=data, text=text))


def end(usage: Usage | None = None, *tail: bytes) -> provider.StreamChatResponse:
    """Return the last message of a provider's stream."""
    return provider.StreamChatResponse(
        end=provider.StreamEnd(
            finish=Finish(reason="stop", raw="stop"),
            usage=a_usage() if usage is None else usage,
            raw_tail=tail,
        )
    )


def failed(reason: str = "PROVIDER_FAILED", retryable: bool = False, **more: Any) -> RpcError:
    """Return a provider's failure."""
    return RpcError(reason, f"provoked {reason}", metadata={"retryable": str(retryable).lower()}, **more)


@asynccontextmanager
async def bounded(seconds: float = 60) -> AsyncIterator[None]:
    """Fail instead of hanging."""
    async with asyncio.timeout(seconds):
        yield


async def until(condition: Callable[[], Any], within_s: float = 30) -> None:
    """Let others run until `condition` holds. Raises AssertionError when it never does."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "what was waited for never came"
        await asyncio.sleep(0)
