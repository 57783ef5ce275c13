"""Frames that are handed on in the turn they come in: neither the caller nor the record can tell."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

import pytest
import pytest_asyncio

from services.listener.request import Request
from services.providers.settings import ProviderSettings
from services.router.settings import RouteSettings, TimeoutSettings
from tests.integration.chat.upstreams import FRAMES, PIECES
from tests.support.chat_stack import Stack, running_stack
from tests.support.fault_server import (
    FaultServer,
    Head,
    Pause,
    Recorded,
    Send,
    Stall,
    Step,
    Wait,
    running_fault_server,
    sse,
)
from tests.support.wire import openai_chunk

pytestmark = pytest.mark.asyncio(loop_scope="module")
FORMS = ("openai", "anthropic", "responses")
PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages", "responses": "/v1/responses"}
SHAPES = ("text", "thought", "tool")
IDLE_S = 0.6
MALFORMED = b"data: {nonsense\n\n"
ERROR = b'data: {"error": {"message": "overloaded", "type": "server_error"}}\n\n'
# Different in every request.
OWN = ("request_id", "decision_id")


class Turns(asyncio.Event):
    """Lasts as many turns of the event loop as a frame needs from one end of the chat path to the other."""

    async def wait(self) -> Literal[True]:
        for _ in range(50):
            await asyncio.sleep(0)
        return True


class Upstream:
    """What the fault server is to send, in these pieces."""

    def __init__(self) -> None:
        self.pieces: Sequence[bytes] = ()
        self.last: list[Step] = []

    def respond(self, request: Recorded) -> list[Step]:
        steps: list[Step] = [Head(content_type="text/event-stream")]
        for piece in self.pieces:
            steps += [Send(piece), Wait(Turns())]
        return [*steps, *self.last]


@pytest.fixture(scope="module")
def upstream() -> Upstream:
    return Upstream()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(upstream: Upstream) -> AsyncIterator[FaultServer]:
    def configure(server: FaultServer) -> None:
        server.choose = upstream.respond

    async with running_fault_server(configure) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(server: FaultServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    limits = TimeoutSettings(connect_s=2, first_token_s=5, idle_s=IDLE_S, total_s=20)
    providers, routes = {}, {}
    for form in FORMS:
        settings = {"adapter": "anthropic" if form == "anthropic" else "openai", "api_key": "sk-upstream"}
        settings |= {"base_url": f"{server.url}/{form}", "responses": form == "responses"}
        providers[form] = ProviderSettings.model_validate(settings)
        routes[form] = RouteSettings(route=[f"{form}/m"], timeouts=limits, rescue="off", retries=0)
    async with running_stack(tmp_path_factory.mktemp("chat"), providers, routes) as running:
        yield running


@pytest.fixture
def handed_on(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return what left in the turn of the event loop in which it came."""
    written: list[bytes] = []
    write_now = Request.write_now

    def recorded(request: Request, data: bytes) -> bool:
        done = write_now(request, data)
        if done:
            written.append(data)
        return done

    monkeypatch.setattr(Request, "write_now", recorded)
    return written


class Answer:
    """What a caller read, and what was written down about it."""

    def __init__(self, events: list[Any], decision: Any, charges: list[Any]) -> None:
        self.events = events
        self.state = decision.state
        self.usage = decision.usage
        self.cost = [charge.amount_nano_credits for charge in charges]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Answer) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(self.state)


async def ask(stack: Stack, form: str) -> Answer:
    stack.router.journal.records.clear()
    messages = [{"role": "user", "content": "hi"}]
    body: dict[str, Any] = {"model": form, "stream": True}
    body |= {"input": messages} if form == "responses" else {"messages": messages}
    body |= {"max_tokens": 500} if form == "anthropic" else {}
    body |= {"stream_options": {"include_usage": True}} if form == "openai" else {}
    async with stack.http.stream("POST", PATHS[form], json=body) as answer:
        text = "".join([piece async for piece in answer.aiter_text()])
    await stack.router.settle()
    journal = stack.router.journal
    return Answer(_events(text), journal.decisions[0], journal.charges)


def _without_own(document: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in OWN}


def _events(text: str) -> list[Any]:
    events = []
    for line in text.splitlines():
        if line.startswith("data: {"):
            events.append(json.loads(line.removeprefix("data: "), object_hook=_without_own))
        elif line:
            events.append(line)
    return events


async def both(stack: Stack, form: str) -> tuple[Answer, Answer]:
    """Return an answer each frame of which is waited for and read in its turn, and one that is handed on."""
    refused = 0

    def never(request: Request, data: bytes) -> bool:
        nonlocal refused
        refused += 1
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Request, "write_now", never)
        read = await ask(stack, form)
    assert refused
    return read, await ask(stack, form)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS)
async def test_frames_that_come_alone_are_handed_on(
    stack: Stack, upstream: Upstream, handed_on: list[bytes], form: str, shape: str
) -> None:
    upstream.pieces, upstream.last = FRAMES[form](PIECES, shape), []
    read, handed = await both(stack, form)
    assert handed == read
    assert handed.state == "complete"
    # All texts but the first, which is waited for before anything begins.
    for piece in PIECES[1:]:
        assert any(json.dumps(piece, ensure_ascii=False).encode() in data for data in handed_on), piece


@pytest.mark.parametrize("cut", [1, 7, 40, 200])
@pytest.mark.parametrize("form", FORMS)
async def test_frames_cut_anywhere(stack: Stack, upstream: Upstream, form: str, cut: int) -> None:
    whole = b"".join(FRAMES[form](PIECES[:3], "tool"))
    step = max(cut, len(whole) // 40)
    upstream.pieces = [whole[at : at + step] for at in range(0, len(whole), step)]
    upstream.last = []
    read, handed = await both(stack, form)
    assert handed == read
    assert handed.state == "complete"


async def test_what_is_no_plain_frame_between_those_that_are(
    stack: Stack, upstream: Upstream, handed_on: list[bytes]
) -> None:
    frames = FRAMES["openai"](PIECES)
    upstream.last = []
    upstream.pieces = [
        *frames[:3],
        b": keep-alive\n\n",
        frames[3] + frames[4],
        frames[5].replace(b"\n", b"\r\n"),
        *frames[6:],
    ]
    read, handed = await both(stack, "openai")
    assert handed == read
    assert handed.state == "complete"
    assert frames[3] + frames[4] in handed_on


@pytest.mark.parametrize(
    ("broken", "state"),
    [
        ([MALFORMED], "upstream_error"),
        ([ERROR], "upstream_error"),
        ([], "truncated"),
        ([b"data: {"], "truncated"),
    ],
)
async def test_ends_that_are_none(
    stack: Stack, upstream: Upstream, handed_on: list[bytes], broken: list[bytes], state: str
) -> None:
    upstream.pieces, upstream.last = [*FRAMES["openai"](PIECES)[:5], *broken], []
    read, handed = await both(stack, "openai")
    assert handed_on
    assert handed == read
    assert handed.state == state
    assert "error" in handed.events[-1]


async def test_who_speaks_is_waited_for_and_who_falls_silent_is_not(
    stack: Stack, upstream: Upstream, server: FaultServer, handed_on: list[bytes]
) -> None:
    frames = FRAMES["openai"]([f"word {number} " for number in range(40)])
    upstream.pieces = frames[:2]
    upstream.last = [step for frame in frames[2:30] for step in (Send(frame), Pause(IDLE_S / 10))]
    upstream.last.append(Stall())
    began = asyncio.get_running_loop().time()
    answer = await ask(stack, "openai")
    # All of them together took longer than the provider may be silent.
    assert asyncio.get_running_loop().time() - began > 2 * IDLE_S
    assert len(handed_on) > 20
    assert answer.state == "upstream_error"
    assert answer.events[-1]["error"]["code"] == "provider_timeout"
    assert server.injected["stall"]


async def test_a_frame_of_another_choice(stack: Stack, upstream: Upstream) -> None:
    frames = FRAMES["openai"](PIECES)
    second = openai_chunk()
    second["choices"] = [{"index": 1, "delta": {"content": "another answer"}, "finish_reason": None}]
    upstream.pieces = [*frames[:3], sse(second), *frames[3:]]
    upstream.last = []
    read, handed = await both(stack, "openai")
    assert handed == read
