"""The HTTP facade under a real server, with a router that obeys the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from omnihub.billing.v1.report_service_api import ReportService
from omnihub.common.v1.chat_pb2 import Finish, Part, TextPart, ToolCall, Usage
from omnihub.common.v1.stream_pb2 import PartDelta, PartStart, PartStop, RawFrame
from omnihub.router.v1 import router_service_pb2 as pb
from omnihub.router.v1.media_router_service_api import MediaRouterService
from omnihub.router.v1.response_service_api import ResponseService
from omnihub.router.v1.router_service_api import RouterService
from omnihub.workflow.v1.consent_service_api import ConsentService
from omnihub.workflow.v1.file_content_service_api import FileContentService
from omnihub.workflow.v1.job_service_api import JobService

from services.common.rpc import Call, Connector, Identity, Registry
from services.common.service import Infrastructure
from services.gateway import app
from services.gateway.settings import GatewaySettings
from services.listener import HttpListener
from tests.support.fakes import Events, Fake, FakeAuthenticator
from tests.support.ports import free_port

KEY = "omni_sk_test"
BODY_LIMIT = 4096


class FakeRouter(Fake):
    """Answers as it is told; `requests` holds what it was asked."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget what was said and asked."""
        self.requests: list[Any] = []
        self.calls: list[Call] = []
        self.answer: Callable[[Any, Call], Awaitable[Any]] | Any = None
        self.events: Events | None = None
        self.models: list[Any] = []
        self.entered = asyncio.Event()
        self.left = asyncio.Event()

    async def chat(self, request: Any, call: Call) -> Any:
        return await self._answer(request, call)

    async def embed(self, request: Any, call: Call) -> Any:
        return await self._answer(request, call)

    async def _answer(self, request: Any, call: Call) -> Any:
        self.requests.append(request)
        self.calls.append(call)
        self.entered.set()
        try:
            if isinstance(self.answer, BaseException):
                raise self.answer
            return await self.answer(request, call) if callable(self.answer) else self.answer
        finally:
            self.left.set()

    async def stream_chat(self, request: Any, call: Call) -> AsyncIterator[Any]:
        self.requests.append(request)
        self.calls.append(call)
        self.entered.set()
        assert self.events is not None
        try:
            async for event in self.events(request, call):
                yield event
        finally:
            self.left.set()

    async def list_models(self, request: Any, call: Call) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=self.models)


class Facade:
    """A running facade."""

    def __init__(self, router: FakeRouter, port: int) -> None:
        self.router = router
        self.port = port
        self.url = f"http://127.0.0.1:{port}"


@asynccontextmanager
async def running_facade(folder: Path, drain_timeout_s: float = 1) -> AsyncIterator[Facade]:
    """Serve the gateway on a free port."""
    router = FakeRouter()
    registry = Registry()
    registry.add(RouterService, router)
    registry.add(ReportService, Fake())
    registry.add(ResponseService, Fake())
    registry.add(JobService, Fake())
    registry.add(MediaRouterService, Fake())
    registry.add(ConsentService, Fake())
    registry.add(FileContentService, Fake())
    scopes = frozenset({"chat"})
    authenticator: Any = FakeAuthenticator(
        omni_sk_test=Identity(organisation_id="org_1", key_id="key_1", scopes=scopes),
        omni_sk_usage=Identity(organisation_id="org_1", key_id="key_2", scopes=frozenset({"usage"})),
    )
    infrastructure = Infrastructure(
        connector=Connector(registry, {}), data_dir=folder, authenticator=authenticator
    )
    service = app.build(GatewaySettings(body_limit_bytes=BODY_LIMIT), infrastructure)

    async def no_problems() -> dict[str, str]:
        return {}

    port = free_port()
    listener = HttpListener(f"127.0.0.1:{port}", service.routes, no_problems, drain_timeout_s)
    await listener.start()
    try:
        yield Facade(router, port)
    finally:
        await listener.stop()


def an_outcome(**more: Any) -> pb.Outcome:
    """Return what a complete answer tells at its end."""
    fields: dict[str, Any] = {
        "request_id": "req_1",
        "decision_id": "dec_1",
        "model_used": "a/x",
        "provider": "a",
        "cost": "0.00002",
        "usage": Usage(input_total=10, output_total=5),
        "finish": Finish(reason="stop", raw="stop"),
        "state": "complete",
    }
    return pb.Outcome(**{**fields, **more})


def started(wire_format: int = 0) -> pb.StreamChatResponse:
    """Return the first message of a stream."""
    start = pb.StreamStart(
        request_id="req_1", decision_id="dec_1", model_used="a/x", provider="a", response_id="resp_1"
    )
    start.wire_format = wire_format  # type: ignore[assignment]
    start.started_at.FromSeconds(1_700_000_000)
    return pb.StreamChatResponse(start=start)


def text_events(*pieces: str) -> list[pb.StreamChatResponse]:
    """Return the events of one text part."""
    return [
        pb.StreamChatResponse(part_start=PartStart(index=0, part=Part(text=TextPart()))),
        *(pb.StreamChatResponse(part_delta=PartDelta(index=0, text=piece)) for piece in pieces),
        pb.StreamChatResponse(part_stop=PartStop(index=0)),
    ]


def tool_events(name: str, *arguments: str) -> list[pb.StreamChatResponse]:
    """Return the events of one tool call."""
    part = Part(tool_call=ToolCall(id="call_1", name=name))
    return [
        pb.StreamChatResponse(part_start=PartStart(index=0, part=part)),
        *(pb.StreamChatResponse(part_delta=PartDelta(index=0, arguments_json=piece)) for piece in arguments),
        pb.StreamChatResponse(part_stop=PartStop(index=0)),
    ]


def raw_frame(data: bytes) -> pb.StreamChatResponse:
    """Return bytes of the caller's own format."""
    return pb.StreamChatResponse(raw_frame=RawFrame(data=data))


def ended(*tail: bytes, **outcome: Any) -> pb.StreamChatResponse:
    """Return the last message of a whole stream."""
    return pb.StreamChatResponse(
        end=pb.StreamEnd(outcome=an_outcome(**outcome), raw_tail=pb.RawTail(documents=tail))
    )


def broken(reason: str) -> pb.StreamChatResponse:
    """Return the last message of a broken stream."""
    outcome = an_outcome(state="upstream_error")
    return pb.StreamChatResponse(error=pb.StreamError(reason=reason, message="broken", outcome=outcome))
